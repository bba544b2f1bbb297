"""Deltas handed over in the very turn that brings them."""

from __future__ import annotations

import asyncio

import pytest

from lmserve.bridge.fake import FakeEngine
from lmserve.errors import EngineError
from lmserve.service.generate import Generation, Service
from lmserve.types import Done, GenerateRequest, TextDelta

ASK = GenerateRequest(text="hi", stop=("STOP",))


async def rest(generation: Generation) -> list[str | Done]:
    return [
        event.text if isinstance(event, TextDelta) else event async for event in generation.events()
    ]


async def steps() -> None:
    """The fake makes a step a turn of the loop: all of its script is said after these."""
    for _ in range(20):
        await asyncio.sleep(0)


class Reader:
    """Takes `patience` deltas, then lags."""

    def __init__(self, patience: int = 1000):
        self.texts: list[str] = []
        self.patience = patience

    def show(self, delta: TextDelta) -> bool:
        self.texts.append(delta.text)
        return len(self.texts) < self.patience


async def test_all_deltas_then_the_end_is_for_events(engine: FakeEngine, service: Service) -> None:
    engine.will_say("a", "b", "c")
    generation = await service.generate(ASK)
    reader = Reader()
    with generation.lease():
        await generation.follow(reader.show)
        assert reader.texts == ["a", "b", "c"]
        (done,) = await rest(generation)
    assert isinstance(done, Done) and done.finish_reason == "stop"


async def test_no_task_wakes_for_a_step(engine: FakeEngine, service: Service) -> None:
    engine.will_say("a", "b").will_say("x", "y")
    first, second = await service.generate(ASK), await service.generate(ASK)
    order: list[str] = []

    def show(delta: TextDelta) -> bool:
        order.append(delta.text)
        return True

    with first.lease(), second.lease():
        await asyncio.gather(first.follow(show), second.follow(show))
    assert order == ["a", "x", "b", "y"]


async def test_a_reader_that_lags_gets_the_rest_merged(
    engine: FakeEngine, service: Service
) -> None:
    engine.will_say("a", "b", "c", "d")
    generation = await service.generate(ASK)
    reader = Reader(patience=2)
    with generation.lease():
        await generation.follow(reader.show)
        assert reader.texts == ["a", "b"]
        await steps()
        *texts, done = await rest(generation)
    assert texts == ["cd"] and isinstance(done, Done)


async def test_what_is_waiting_is_taken_first(engine: FakeEngine, service: Service) -> None:
    engine.will_say("a", "b", "c")
    generation = await service.generate(ASK)
    await steps()
    reader = Reader()
    with generation.lease():
        await generation.follow(reader.show)
        assert reader.texts == ["abc"]
        (done,) = await rest(generation)
        assert isinstance(done, Done)
        await generation.follow(reader.show)  # after the end it returns at once
    assert reader.texts == ["abc"]


async def test_a_stop_string_ends_it_with_one_abort(engine: FakeEngine, service: Service) -> None:
    engine.will_hang("one ST", "OP two")
    generation = await service.generate(ASK)
    reader = Reader()
    with generation.lease():
        await generation.follow(reader.show)
        (done,) = await rest(generation)
    assert "".join(reader.texts) == "one "
    assert isinstance(done, Done) and done.stop_reason == "STOP"
    assert len(engine.aborts) == 1


@pytest.mark.parametrize("pieces", [(), ("a",)])
async def test_a_failure_is_raised_by_events(
    engine: FakeEngine, service: Service, pieces: tuple[str, ...]
) -> None:
    engine.will_fail("out of luck", *pieces)
    generation = await service.generate(ASK)
    reader = Reader()
    with generation.lease():
        await generation.follow(reader.show)
        assert reader.texts == list(pieces)
        with pytest.raises(EngineError, match="out of luck"):
            await rest(generation)


async def test_what_show_raises_reaches_the_follower_and_nobody_else(
    engine: FakeEngine, service: Service
) -> None:
    engine.will_say("a", "b").will_say("x", "y")
    bad, good = await service.generate(ASK), await service.generate(ASK)

    def broken(delta: TextDelta) -> bool:
        raise ConnectionResetError(delta.text)

    reader = Reader()

    async def follow_bad() -> None:
        with bad.lease(), pytest.raises(ConnectionResetError):
            await bad.follow(broken)

    with good.lease():
        await asyncio.gather(follow_bad(), good.follow(reader.show))
        assert reader.texts == ["x", "y"]
        await rest(good)
    assert engine.aborts == [bad._mailbox.rid]


async def test_a_reader_that_waits_elsewhere_is_a_bug(engine: FakeEngine, service: Service) -> None:
    """It would never be woken: the mail goes to the follower alone."""
    engine.will_hang()
    generation = await service.generate(ASK)
    with generation.lease():
        waiting = asyncio.ensure_future(anext(generation.events()))
        await asyncio.sleep(0)
        with pytest.raises(AssertionError, match="waits"):
            await generation.follow(Reader().show)
        waiting.cancel()


async def test_a_cancelled_follower_hears_no_more(engine: FakeEngine, service: Service) -> None:
    engine.will_hang("a")
    generation = await service.generate(ASK)
    reader = Reader()

    async def handler() -> None:
        with generation.lease():
            await generation.follow(reader.show)

    task = asyncio.create_task(handler())
    await steps()
    assert reader.texts == ["a"]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert generation.ended and engine.aborts == [generation._mailbox.rid]
    assert generation._mailbox.listener is None
