"""A thread for the disk: what is asked of it is done in order, and off the loop."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

from lmserve.errors import StoreError

P = ParamSpec("P")
T = TypeVar("T")


class Disk:
    def __init__(self, name: str):
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._closed = False

    async def do(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """A caller that is cancelled does not stop it. Raises StoreError."""
        if self._closed:
            raise StoreError("files are not kept: the server is stopping")
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(
                self._thread, functools.partial(work, *args, **kwargs)
            )
        except OSError as error:
            raise StoreError(f"files could not be written or read: {error.strerror}") from error

    def later(self, work: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Nobody waits for it."""
        if not self._closed:
            self._thread.submit(work, *args, **kwargs)

    async def close(self) -> None:
        """After all that was asked of it."""
        self._closed = True
        await asyncio.to_thread(self._thread.shutdown)


def sync_folder(folder: Path) -> None:
    """What was renamed in it stays so, even where the power fails."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
