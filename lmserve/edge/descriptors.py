"""File descriptors: enough for all connections, and some for what else the process does."""

from __future__ import annotations

import logging
import resource

SPARE = 256  # for files, pipes, the engine, connections that are being turned away

logger = logging.getLogger(__name__)


def make_room(max_connections: int, each: int) -> int:
    """How many connections the process has descriptors for, at most so many; raises its soft
    limit as far as that takes and the hard one allows."""
    wanted = max_connections * each + SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _unlimited(hard, wanted)
    if _unlimited(soft, wanted) < wanted:
        soft = min(wanted, most)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    room = max(1, (min(most, wanted) - SPARE) // each)
    if room < max_connections:
        logger.warning(
            "max_connections is %d, but %d file descriptors (ulimit -n) are enough for %d: raise "
            "the one or lower the other",
            max_connections,
            most,
            room,
        )
    return room


def _unlimited(limit: int, wanted: int) -> int:
    return wanted if limit == resource.RLIM_INFINITY else limit
