"""A file of this process for what is read from a path."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path


@functools.cache
def folder() -> Path:
    path = Path(tempfile.mkdtemp(prefix="lmserve-fuzz-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def written(name: str, data: bytes) -> Path:
    """A new file each time: an older one may still be mapped."""
    path = folder() / name
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    return path
