"""What a connection has going on: in order where it must be, else side by side."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Hashable

from lmserve.errors import Overloaded

Job = Callable[[], Coroutine[None, None, None]]


class Jobs:
    """Jobs under one key run one after another, as they came; those under others beside them.

    Jobs raise nothing. `kind` is what a key names."""

    def __init__(self, kind: str, *, max_keys: int, max_waiting: int):
        self._kind = kind
        self._max_keys = max_keys
        self._max_waiting = max_waiting
        self._queues: dict[Hashable, deque[Job]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def put(self, key: Hashable, job: Job) -> None:
        """Raises Overloaded; then nothing is done."""
        queue = self._queues.get(key)
        if queue is None:
            if len(self._queues) >= self._max_keys:
                raise Overloaded(
                    f"this connection has {self._max_keys} {self._kind}s at work, its limit: wait "
                    "for one of them, or open another connection"
                )
            self._queues[key] = queue = deque()
            task = asyncio.create_task(self._run(key, queue))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif len(queue) > self._max_waiting:  # one is at work
            raise Overloaded(
                f"{self._max_waiting} events wait for this {self._kind} already: wait for one of "
                f"them, or use another {self._kind}"
            )
        queue.append(job)

    async def settled(self, timeout_s: float) -> None:
        """Returns when nothing is at work, or then."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)

    def close(self) -> None:
        """Cancels all, whatever task this is called in."""
        for task in self._tasks:
            task.cancel()

    async def _run(self, key: Hashable, queue: deque[Job]) -> None:
        try:
            while queue:
                await queue[0]()
                queue.popleft()
        finally:
            del self._queues[key]
