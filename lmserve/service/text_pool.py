"""Threads for text work, which no request can keep from the others.

Two jobs run at once: more would only hold up the loop. One that has run for `SLOW_S` no longer
counts, so that others go on beside it, up to `MAX_THREADS` in all. Who waits gets a thread by
turns, an owner at a time, and no owner has more than `MAX_OWN` of them. What is no request has
`MAX_ASIDE` threads of its own.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar, TypeVarTuple

from lmserve.errors import NoThread, TextTooSlow
from lmserve.grammars import DeepThreads
from lmserve.service.admission import Ticket
from lmserve.text import deadline

NUM_AT_ONCE = 2
SLOW_S = 1.0
MAX_THREADS = 8
MAX_OWN = 6
MAX_ASIDE = 2
NO_THREAD = "the server can start no thread for this request: try again in a moment"

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
Job = tuple[Future[Any], Callable[[], Any]]


class TextPool:
    """Owned by the preparer, on its loop."""

    def __init__(self, timeout_s: float):
        self._timeout_s = timeout_s
        self._threads = DeepThreads(MAX_THREADS, "text")
        self._aside = DeepThreads(MAX_ASIDE, "text aside")
        self._waiting: OrderedDict[str, deque[Job]] = OrderedDict()
        self._running: Counter[str] = Counter()
        self._num_slow = 0

    async def run(self, ticket: Ticket, param: str, call: Callable[[*Ts], T], *args: *Ts) -> T:
        """What it returns, or raises. Raises TextTooSlow where it takes longer than it may, its
        turn included; the thread ends soon after. Raises NoThread."""
        future: Future[T] = Future()
        ticket.job = future
        job: Job = future, partial(call, *args)
        self._waiting.setdefault(ticket.owner, deque()).append(job)
        self._start()
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self._timeout_s)
        except TimeoutError:
            raise TextTooSlow(
                f"{param} took longer than {self._timeout_s:g} s to make ready: make it smaller, "
                "or try again when the server is less busy",
                param=param,
            ) from None
        finally:
            if future.cancelled():  # it may wait here yet, and hold what it was to work on
                self._forget(ticket.owner, job)

    async def run_aside(self, call: Callable[[*Ts], T], *args: *Ts) -> T:
        """What no place is held for, such as drafts: these may be many. Raises NoThread."""
        try:
            job = self._aside.submit(deadline.limited, self._timeout_s, partial(call, *args))
        except RuntimeError:
            raise NoThread(NO_THREAD) from None
        result: T = await asyncio.wrap_future(job)
        return result

    def close(self) -> None:
        """What has begun ends by itself; nobody waits for it."""
        for jobs in self._waiting.values():
            for future, _ in jobs:
                future.cancel()
        self._waiting.clear()
        self._threads.close()
        self._aside.close()

    def _forget(self, owner: str, job: Job) -> None:
        jobs = self._waiting.get(owner)
        if jobs is not None and job in jobs:
            jobs.remove(job)
            if not jobs:
                del self._waiting[owner]

    def _start(self) -> None:
        """As many as may."""
        while self._running.total() - self._num_slow < NUM_AT_ONCE:
            if self._running.total() >= MAX_THREADS or not self._start_next():
                return

    def _start_next(self) -> bool:
        for owner, jobs in self._waiting.items():
            if self._running[owner] >= MAX_OWN:
                continue
            future, call = jobs.popleft()
            if jobs:
                self._waiting.move_to_end(owner)
            else:
                del self._waiting[owner]
            if future.set_running_or_notify_cancel():
                self._run(owner, future, call)
            return True
        return False

    def _run(self, owner: str, future: Future[Any], call: Callable[[], Any]) -> None:
        loop = asyncio.get_running_loop()
        self._running[owner] += 1
        was_slow = False

        def slow() -> None:
            nonlocal was_slow
            was_slow = True
            self._num_slow += 1
            self._start()

        def leave() -> None:
            timer.cancel()
            self._num_slow -= was_slow
            self._running[owner] -= 1
            if not self._running[owner]:
                del self._running[owner]

        def ended() -> None:
            leave()
            self._start()

        def in_thread() -> None:
            try:
                result = deadline.limited(self._timeout_s, call)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(ended)

        timer = loop.call_later(SLOW_S, slow)
        try:
            self._threads.submit(in_thread)
        except RuntimeError:
            leave()
            future.set_exception(NoThread(NO_THREAD))
