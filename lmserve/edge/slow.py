"""Clients that read nothing."""

from __future__ import annotations

import logging

from aiohttp import web

logger = logging.getLogger(__name__)


def drop(request: web.Request, write_timeout_s: float) -> None:
    """Ends the connection; a handler that still runs is cancelled."""
    logger.warning("dropping a client that read nothing for %.0f s", write_timeout_s)
    if request.transport is not None:
        request.transport.abort()
