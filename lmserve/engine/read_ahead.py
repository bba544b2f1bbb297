"""A model's files read into the system's memory while torch is still being imported.

They are read, in calls so large that the interpreter's lock does not matter: told to fetch a file
(`posix_fadvise`), Linux fetches a few hundred KiB of it. What is in memory already is seen by a
read that does not wait, and skipped. No torch here.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from lmserve.engine.cache.layout import available_memory
from lmserve.settings import EngineSettings

log = logging.getLogger(__name__)

NUM_THREADS = 4  # what a disk wants to be asked for at once
SCRATCH_BYTES = 2**20  # where everything is read to
SPAN_BYTES = 32 * 2**20  # in one call
MAX_SHARE = 0.8  # of the free memory, that the files may take


def begin_reading(settings: EngineSettings) -> list[threading.Thread]:
    """Begins it, and returns: nobody waits for these threads, and what they cannot read is told
    by whoever needs it. Files that do not fit the memory would push each other out."""
    if settings.model is None or settings.load_format == "dummy":
        return []
    files = {file: size for file in _weight_files(Path(settings.model)) if (size := _size(file))}
    if sum(files.values()) > MAX_SHARE * available_memory():
        return []
    spans = [(file, start) for file, size in files.items() for start in range(0, size, SPAN_BYTES)]
    left = iter(spans)
    threads = [
        threading.Thread(target=_read, args=(left,), name="read ahead", daemon=True)
        for _ in range(min(NUM_THREADS, len(spans)))
    ]
    for thread in threads:
        thread.start()
    return threads


def _weight_files(model: Path) -> list[Path]:
    if not model.is_dir():
        return [model]
    found = sorted(model.glob("*.safetensors"))
    return [file for file in found if not file.name.startswith("consolidated")]


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _read(left: Iterator[tuple[Path, int]]) -> None:
    buffers = [bytearray(SCRATCH_BYTES)] * (SPAN_BYTES // SCRATCH_BYTES)
    for file, start in left:  # shared: a span goes to one thread
        try:
            fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if not _is_cached(fd, start):
                    os.preadv(fd, buffers, start)
            finally:
                os.close(fd)
        except OSError as error:
            log.debug("cannot read %s ahead: %s", file, error)
            return


def _is_cached(fd: int, start: int) -> bool:
    """Told by the beginnings of its parts."""
    byte = [bytearray(1)]
    try:
        for offset in range(start, start + SPAN_BYTES, SCRATCH_BYTES):
            os.preadv(fd, byte, offset, os.RWF_NOWAIT)
    except (OSError, AttributeError):  # it would wait; nobody can tell, as on other systems
        return False
    return True
