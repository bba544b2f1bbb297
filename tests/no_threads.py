"""A system that starts no more of the threads that work on deep structures."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lmserve import grammars
from lmserve.grammars import STACK_BYTES

needs_linux = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")


@contextmanager
def no_threads() -> Iterator[None]:
    """There is no memory for a deep stack. The C library may keep that of a thread which has
    ended: a deeper one is asked for, which it cannot have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    num_pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = num_pages * resource.getpagesize() + STACK_BYTES // 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grammars, "STACK_BYTES", 2 * STACK_BYTES)
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
