"""An event loop in a thread of its own, so that the main thread can read lines and hear Ctrl-C."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import Any, Self, TypeVar

T = TypeVar("T")


class LoopThread:
    """Owns the loop and its thread from `with` to the end of it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="loop", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._clean_up(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs it in the loop. Ctrl-C here cancels it, waits until it has cleaned up, and is
        raised again."""
        future: Future[T] = Future()
        tasks: list[asyncio.Task[T]] = []

        def begin() -> None:
            task = self._loop.create_task(coroutine)
            task.add_done_callback(lambda done: _copy(done, future))
            tasks.append(task)

        def stop() -> None:
            if not tasks:  # interrupted before it was told to begin
                begin()
            tasks[0].cancel()

        try:
            self._loop.call_soon_threadsafe(begin)
            return future.result()
        except KeyboardInterrupt:
            self._loop.call_soon_threadsafe(stop)
            with suppress(CancelledError):
                future.result()
            raise

    async def _clean_up(self) -> None:
        """What `asyncio.run` does at its end."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._loop.shutdown_asyncgens()
        await self._loop.shutdown_default_executor()


def _copy(task: asyncio.Task[T], future: Future[T]) -> None:
    if task.cancelled():
        future.set_exception(CancelledError())
    elif error := task.exception():
        future.set_exception(error)
    else:
        future.set_result(task.result())
