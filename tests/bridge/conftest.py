"""The three engines behind one gate, each with a way to make a request fail."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lmserve.bridge.child import ChildEngine
from lmserve.bridge.fake import FakeEngine
from lmserve.bridge.thread import ThreadEngine
from lmserve.sampling import SamplingParams
from lmserve.settings import EngineSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from lmserve.bridge.handle import EngineHandle
    from lmserve.bridge.mailbox import Delivery, Mailbox

HERE = Path(__file__).parent
CORE = "scripted_core:ScriptedCore"


@pytest.fixture(autouse=True)
def _core_is_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HERE))  # for the thread
    monkeypatch.setenv("PYTHONPATH", str(HERE))  # for the child


@contextlib.contextmanager
def no_new_threads() -> Iterator[None]:
    """The system has none to give: no memory for a stack of this size. None is idle either."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor())
    before = threading.stack_size(2**50)
    try:
        yield
    finally:
        threading.stack_size(before)


class Bench:
    """An engine of one kind, and the tests' shorthand."""

    FOREVER = 10**9  # tokens
    FAILS, RAISES, EXITS, WAITS = 990, 991, 992, 993  # prompts, see scripted_core

    def __init__(self, kind: str, **settings: Any):
        self.kind = kind
        made = replace(EngineSettings(), **settings)
        self.engine: EngineHandle
        match kind:
            case "child":
                self.engine = ChildEngine(made, CORE)
            case "thread":
                self.engine = ThreadEngine(made, CORE)
            case _:
                self.engine = FakeEngine(made)

    def ask(self, *prompt: int, max_tokens: int = 4, **sampling: Any) -> Mailbox:
        params = SamplingParams(max_tokens=max_tokens, **sampling)
        return self.engine.submit(list(prompt) or [1], params)

    def ask_and_fail(self) -> Mailbox:
        if isinstance(self.engine, FakeEngine):
            self.engine.will_fail("out of luck")
        return self.ask(self.FAILS)

    def ask_and_wait(self) -> Mailbox:
        """A request that says nothing until aborted."""
        if isinstance(self.engine, FakeEngine):
            self.engine.will_hang()
        return self.ask(self.WAITS)

    async def read(self, mailbox: Mailbox) -> tuple[list[int], Delivery]:
        """All tokens, and the terminal delivery."""
        token_ids: list[int] = []
        while True:
            delivery = await mailbox.get()
            token_ids += delivery.token_ids
            if delivery.finish is not None:
                return token_ids, delivery

    async def until(self, state: str) -> None:
        while self.engine.health().state != state:
            await self.engine.changed()

    @property
    def pid(self) -> int:
        assert self.engine.info is not None
        return self.engine.info.pid


@pytest.fixture
async def make_bench() -> AsyncIterator[Callable[..., Bench]]:
    """Makes benches, not started; closes their engines after the test."""
    benches: list[Bench] = []

    def make(kind: str, **settings: Any) -> Bench:
        benches.append(Bench(kind, **settings))
        return benches[-1]

    yield make
    for bench in benches:
        await bench.engine.close()


@pytest.fixture(params=["child", "thread", "fake"])
async def bench(request: pytest.FixtureRequest, make_bench: Callable[..., Bench]) -> Bench:
    made = make_bench(request.param)
    await made.engine.start()
    await made.engine.wait_ready()
    return made


@pytest.fixture
async def child(make_bench: Callable[..., Bench]) -> Bench:
    made = make_bench("child", stuck_after_s=0.4)
    await made.engine.start()
    await made.engine.wait_ready()
    return made
