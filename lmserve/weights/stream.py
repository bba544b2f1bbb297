"""Tensors from their files straight to their places on the device.

Threads go through the files in order. Each reads a piece into a staging buffer of its own, from
which the device fetches it while the next piece is read into another: no weight is held on the
host, and the memory is bounded whatever the model. Files are read, not mapped: a read tells of a
file that was cut short where a mapping kills the process, asks the disk for megabytes at once, and
its buffers can be pinned once, not the whole file page by page.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from lmserve.errors import ModelError
from lmserve.weights.header import StoredTensor, damaged

log = logging.getLogger(__name__)

MAX_READERS = 8
BUFFERS = 2  # of a reader: one is read into while the device fetches the other
BUFFER_BYTES = 4 * 2**20  # larger ones leave the processor's cache; a multiple of every type's size


class Staging(Protocol):
    """A host buffer that a device fetches from; one thread's own."""

    memory: torch.Tensor  # uint8, on the host

    def send(self, num_bytes: int, dtype: torch.dtype, target: torch.Tensor) -> None:
        """Begins to copy the first `num_bytes`, values of `dtype`, to all of `target`, which is
        contiguous and may have another dtype."""

    def wait(self) -> None:
        """Until what was sent is in its place, and `memory` may be written again."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of bytes in a file, and where its values go."""

    path: Path
    offset: int
    num_bytes: int
    dtype: torch.dtype
    target: torch.Tensor  # one dimension


class WeightStream:
    """Notes what goes where (`add`, from any thread), then reads all of it (`run`)."""

    def __init__(
        self,
        new_staging: Callable[[int], Staging],
        num_readers: int | None = None,  # default: as many as there are cores
        buffer_bytes: int = BUFFER_BYTES,
    ):
        self._new_staging = new_staging
        self._num_readers = num_readers or min(MAX_READERS, max(2, os.cpu_count() or 1))
        self._buffer_bytes = buffer_bytes
        self._wanted: list[tuple[StoredTensor, torch.Tensor]] = []

    def add(self, stored: StoredTensor, target: torch.Tensor) -> None:
        """`target`, contiguous and of as many values, is filled by `run`."""
        assert target.is_contiguous() and target.numel() * stored.dtype.itemsize == stored.num_bytes
        self._wanted.append((stored, target))

    def run(self) -> None:
        """Fills every target. Raises ModelError when a file is not what its header said."""
        if not self._wanted:
            return
        begun = time.perf_counter()
        pieces = [piece for wanted in self._in_file_order() for piece in self._cut(*wanted)]
        num_bytes = sum(piece.num_bytes for piece in pieces)
        with ExitStack() as opened:
            files = {path: _open(path, opened) for path in {piece.path for piece in pieces}}
            self._read_all(pieces, files)
        self._wanted.clear()
        took = time.perf_counter() - begun
        log.info("read %.2f GiB of weights in %.1f s", num_bytes / 2**30, took)

    def _in_file_order(self) -> list[tuple[StoredTensor, torch.Tensor]]:
        return sorted(self._wanted, key=lambda each: (each[0].path, each[0].offset))

    def _cut(self, stored: StoredTensor, target: torch.Tensor) -> Iterator[Piece]:
        flat, size = target.view(-1), stored.dtype.itemsize
        step = self._buffer_bytes // size
        for start in range(0, len(flat), step):
            part = flat[start : start + step]
            offset = stored.offset + start * size
            yield Piece(stored.path, offset, len(part) * size, stored.dtype, part)

    def _read_all(self, pieces: list[Piece], files: dict[Path, int]) -> None:
        num_readers = max(1, min(self._num_readers, len(pieces)))
        left, stop = iter(pieces), threading.Event()  # shared: a piece goes to one reader
        with ThreadPoolExecutor(num_readers, thread_name_prefix="read weights") as pool:
            try:
                readers = [pool.submit(self._read, left, files, stop) for _ in range(num_readers)]
                wait(readers, return_when=FIRST_EXCEPTION)
            finally:  # an interrupt, or a reader's failure: the others stop at their next piece
                stop.set()
        for reader in readers:
            reader.result()

    def _read(self, left: Iterator[Piece], files: dict[Path, int], stop: threading.Event) -> None:
        buffers = [self._new_staging(self._buffer_bytes) for _ in range(BUFFERS)]
        try:
            while not stop.is_set() and (piece := next(left, None)) is not None:
                buffers.append(staging := buffers.pop(0))
                staging.wait()
                memory = staging.memory.numpy().data[: piece.num_bytes]
                _fill(memory, files[piece.path], piece)
                staging.send(piece.num_bytes, piece.dtype, piece.target)
        finally:
            for staging in buffers:
                staging.wait()


def _open(path: Path, opened: ExitStack) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
    opened.callback(os.close, fd)
    return fd


def _fill(memory: memoryview, fd: int, piece: Piece) -> None:
    done = 0
    while done < len(memory):
        try:
            count = os.preadv(fd, [memory[done:]], piece.offset + done)
        except OSError as error:
            raise damaged(piece.path, error.strerror or error) from error
        if not count:
            raise damaged(piece.path, f"it ends before byte {piece.offset + len(memory)}")
        done += count
