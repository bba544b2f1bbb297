from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator

import pytest

from lmserve.errors import NoThread, TextTooSlow
from lmserve.service import text_pool
from lmserve.service.admission import Admission, Ticket
from lmserve.service.text_pool import MAX_ASIDE, MAX_OWN, MAX_THREADS, TextPool
from lmserve.text import deadline
from tests.no_threads import needs_linux, no_threads

LONG_S = 600.0


@pytest.fixture
async def pool() -> AsyncIterator[TextPool]:
    pool = TextPool(LONG_S)
    yield pool
    pool.close()


def ticket(owner: str = "") -> Ticket:
    return Admission(100, 100).enter(1, owner)[0]


async def until(ready: object) -> None:
    async with asyncio.timeout(30):
        while not ready():  # type: ignore[operator]  # noqa: ASYNC110
            await asyncio.sleep(0.002)


class Wedge:
    """Jobs that hold their threads until `go_on`."""

    def __init__(self, pool: TextPool) -> None:
        self._pool = pool
        self.go_on = threading.Event()
        self.running = 0
        self.tasks: list[asyncio.Task[None]] = []

    def _hold(self) -> None:
        self.running += 1
        self.go_on.wait(30)

    def add(self, num: int, owner: str = "") -> None:
        for _ in range(num):
            held = self._pool.run(ticket(owner), "messages", self._hold)
            self.tasks.append(asyncio.create_task(held))

    async def end(self) -> None:
        self.go_on.set()
        await asyncio.gather(*self.tasks)


async def test_results_and_errors_are_the_jobs(pool: TextPool) -> None:
    assert await pool.run(ticket(), "x", max, 1, 2) == 2
    with pytest.raises(ZeroDivisionError):
        await pool.run(ticket(), "x", lambda: 1 // 0)


async def test_wedged_jobs_stop_nobody(pool: TextPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_pool, "SLOW_S", 0.02)
    wedge = Wedge(pool)
    wedge.add(100, "greedy")
    await until(lambda: wedge.running == MAX_OWN)
    for _ in range(5):
        assert await pool.run(ticket("other"), "x", max, 1, 2) == 2
    assert wedge.running == MAX_OWN < MAX_THREADS
    await wedge.end()
    assert wedge.running == 100


async def test_owners_take_turns(pool: TextPool) -> None:
    wedge = Wedge(pool)
    wedge.add(2)
    await until(lambda: wedge.running == 2)
    order: list[str] = []
    names = ["a"] * 50 + ["b"] * 2
    asked = [pool.run(ticket(name), "x", order.append, name) for name in names]
    asked = [asyncio.ensure_future(each) for each in asked]
    await asyncio.sleep(0)
    await wedge.end()
    await asyncio.gather(*asked)
    assert {"a", "b"} == set(order[:6]) and order.count("b") == 2


async def test_what_takes_too_long_is_told_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = TextPool(0.05)
    ended = threading.Event()

    def loop() -> None:
        until = time.monotonic() + 30
        try:
            while time.monotonic() < until:
                deadline.check()
        finally:
            ended.set()

    with pytest.raises(TextTooSlow) as caught:
        await pool.run(ticket(), "messages", loop)
    assert caught.value.param == "messages" and caught.value.retry_after_s >= 1
    assert caught.value.status == 429  # of 503 a distributor thinks that the node is down
    assert await asyncio.to_thread(ended.wait, 20)
    pool.close()


async def test_who_leaves_the_queue_leaves_nothing_in_it(pool: TextPool) -> None:
    wedge = Wedge(pool)
    wedge.add(2)
    await until(lambda: wedge.running == 2)
    gone = [asyncio.create_task(pool.run(ticket(), "x", max, 1, 2)) for _ in range(10)]
    await until(lambda: pool._waiting and len(pool._waiting[""]) == 10)
    for task in gone:
        task.cancel()
    await asyncio.wait(gone)
    assert not pool._waiting
    await wedge.end()


async def test_what_is_no_request_holds_up_nothing_else(pool: TextPool) -> None:
    held, go_on = 0, threading.Event()

    def hold() -> None:
        nonlocal held
        held += 1
        go_on.wait(30)

    asides = [asyncio.create_task(pool.run_aside(hold)) for _ in range(100)]
    await until(lambda: held == MAX_ASIDE)
    assert await pool.run(ticket(), "x", max, 1, 2) == 2
    assert await asyncio.to_thread(max, 1, 2) == 2  # whatever else is not for the loop
    for aside in asides[:-1]:
        aside.cancel()
    await asyncio.wait(asides[:-1])
    go_on.set()
    await asides[-1]
    assert held <= MAX_ASIDE + 1


@needs_linux
async def test_without_threads_each_is_told_and_nothing_is_held(pool: TextPool) -> None:
    ran: list[int] = []
    runs = [asyncio.create_task(pool.run(ticket("a"), "x", ran.append, 1)) for _ in range(20)]
    runs += [asyncio.create_task(pool.run_aside(ran.append, 1))]
    with no_threads():
        told = await asyncio.gather(*runs, return_exceptions=True)
    assert {type(each) for each in told} == {NoThread} and NoThread.status == 503
    assert not pool._running and not pool._num_slow and not pool._waiting
    assert await asyncio.gather(*(pool.run(ticket("a"), "x", max, 1, 2) for _ in range(20)))
    assert await pool.run_aside(max, 1, 2) == 2
    assert not ran  # an executor runs what it could not start, once it can


@needs_linux
async def test_beside_a_thread_that_works(pool: TextPool) -> None:
    wedge = Wedge(pool)
    wedge.add(1)
    await until(lambda: wedge.running == 1)
    with no_threads(), pytest.raises(NoThread):
        await pool.run(ticket(), "x", max, 1, 2)
    assert pool._running.total() == 1
    await wedge.end()
    await until(lambda: not pool._running)
    assert await pool.run(ticket(), "x", max, 1, 2) == 2
