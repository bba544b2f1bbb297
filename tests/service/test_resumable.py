"""Answers that outlive their connection, over the fake engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

import pytest

from lmserve.bridge.fake import FakeEngine
from lmserve.errors import EngineError, InvalidField, KeyReused, LmserveError
from lmserve.ids import Ids
from lmserve.service.generate import Generation, Service
from lmserve.service.streams.resumable import Events, Key, Making, Recipe, Resumable, Telling
from lmserve.service.streams.stream import StreamEvent
from lmserve.service.streams.streams import Streams
from lmserve.settings import StreamSettings
from lmserve.types import GenerateRequest, TextDelta

ASK = GenerateRequest(text="hi")
KEY = Key("ann", "/v1/completions", "k", b"1")


def told(text: str) -> Events:
    return [StreamEvent(b"", text.encode())]


def tell(generations: Sequence[Generation]) -> Telling:
    (generation,) = generations

    async def events() -> AsyncGenerator[Events, None]:
        async for event in generation.events():
            yield told(event.text if isinstance(event, TextDelta) else f"<{event.finish_reason}>")

    return Telling(events(), lambda show: generation.follow(lambda delta: show(told(delta.text))))


def tell_failure(error: LmserveError) -> Events:
    return told(f"!{error.message}")


class Asker:
    """Asks the service, as a route does."""

    def __init__(self, service: Service, settings: StreamSettings):
        self.service = service
        self.streams = Streams(settings)
        self.resumable = Resumable(self.streams, Ids())

    def ask(self, request: GenerateRequest = ASK, key: Key | None = None) -> Making:
        return self.resumable.make(
            "ann", Recipe(lambda: self.service.generate_all([request]), tell, tell_failure), key
        )


@pytest.fixture
async def asker(service: Service) -> AsyncIterator[Asker]:
    asker = Asker(service, StreamSettings())
    yield asker
    await asker.resumable.close()
    asker.streams.close()
    assert not asker.resumable._keyed and not asker.resumable._tasks


@pytest.fixture
async def strict(service: Service) -> AsyncIterator[Asker]:
    """Without patience for absent readers."""
    asker = Asker(service, StreamSettings(stream_grace_s=0.0))
    yield asker
    await asker.resumable.close()
    asker.streams.close()


async def read(making: Making, starting_after: int = -1) -> list[str]:
    texts: list[str] = []
    with making.stream.reading(starting_after) as reader:
        while not reader.at_end:
            await reader.wait()
            texts += [event.data.decode() for event in reader.take()]
    return texts


async def test_it_is_made_once_for_all(asker: Asker, engine: FakeEngine) -> None:
    engine.will_say("a", "b", "c")
    making = asker.ask(key=KEY)
    await making.started()
    assert asker.ask(key=KEY) is making
    await asyncio.gather(making.begun(), making.begun())
    for texts in await asyncio.gather(read(making), read(making)):
        assert texts == ["a", "b", "c", "<stop>"]
    await making.begun()
    assert asker.ask(key=KEY) is making  # ended, and kept
    assert await read(making, 2) == ["<stop>"]
    assert len(engine.submits) == 1


async def test_no_task_wakes_for_a_step(asker: Asker, engine: FakeEngine) -> None:
    engine.will_say("a", "b").will_say("x", "y")
    seen: list[bytes] = []

    async def follow(making: Making) -> None:
        def show(number: int, event: StreamEvent) -> bool:
            seen.append(event.data)
            return True

        with making.stream.reading() as reader:
            await reader.follow(show)

    await asyncio.gather(follow(asker.ask()), follow(asker.ask()))
    assert seen[:4] == [b"a", b"x", b"b", b"y"]


async def test_keys_of_others_are_others(asker: Asker) -> None:
    making = asker.ask(key=KEY)
    for other in (
        Key("bob", KEY.route, KEY.text, b"1"),
        Key("ann", "/v1/chat/completions", KEY.text, b"1"),
        Key("ann", KEY.route, "K", b"1"),
    ):
        assert asker.ask(key=other) is not making
    assert asker.ask() is not asker.ask()


async def test_a_key_with_another_request(asker: Asker, engine: FakeEngine) -> None:
    engine.will_say("a")
    making = asker.ask(key=KEY)
    other = Key("ann", KEY.route, KEY.text, b"2")
    with pytest.raises(KeyReused):
        asker.ask(key=other)
    await read(making)
    with pytest.raises(KeyReused):
        asker.ask(key=other)
    asker.streams.forget(making.stream)
    assert asker.ask(key=other) is not making


async def test_a_refused_request_is_not_remembered(asker: Asker, engine: FakeEngine) -> None:
    bad = GenerateRequest(text="hi", temperature=-1.0)
    making = asker.ask(bad, KEY)
    assert asker.ask(bad, KEY) is making
    results = await asyncio.gather(
        making.begun(), making.begun(), making.started(), return_exceptions=True
    )
    assert [type(result) for result in results] == [InvalidField, InvalidField, type(None)]
    assert len(asker.streams) == 0
    engine.will_say("a")
    assert await read(asker.ask(ASK, Key("ann", KEY.route, KEY.text, b"2"))) == ["a", "<stop>"]


async def test_a_failure_before_the_first_event(asker: Asker, engine: FakeEngine) -> None:
    engine.will_fail("out of luck").will_say("a")
    making = asker.ask(key=KEY)
    with pytest.raises(EngineError, match="out of luck"):
        await making.begun()
    assert await read(asker.ask(key=KEY)) == ["a", "<stop>"]


async def test_a_failure_after_it_is_the_last_event(asker: Asker, engine: FakeEngine) -> None:
    engine.will_fail("out of luck", "a").will_say("a")
    making = asker.ask(key=KEY)
    await making.begun()
    assert await read(making) == ["a", "!out of luck"]
    assert asker.ask(key=KEY) is not making  # the retry runs anew
    assert asker.streams.find("ann", making.stream.id) is making.stream


async def test_a_bug_is_logged_and_told(
    asker: Asker, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(generations: Sequence[Generation]) -> Telling:
        raise KeyError("a bug")

    engine.will_hang()
    making = asker.resumable.make(
        "ann", Recipe(lambda: asker.service.generate_all([ASK]), broken, tell_failure)
    )
    with pytest.raises(LmserveError, match=f"internal error.*{making.stream.id}"):
        await making.begun()
    assert "a bug" in caplog.text
    assert len(engine.aborts) == 1


async def test_abandoned_in_mid_answer_it_ends_as_aborted(
    strict: Asker, engine: FakeEngine
) -> None:
    engine.will_hang("a")
    making = strict.ask(key=KEY)
    with making.stream.reading() as reader:
        await making.begun()
        reader.take()
    await making.task
    assert await read(making) == ["a", "<abort>"]
    assert strict.ask(key=KEY) is not making


async def test_abandoned_before_it_began(strict: Asker, engine: FakeEngine) -> None:
    making = strict.ask(key=KEY)  # its handler was cancelled at once
    await asyncio.wait([making.task])
    with pytest.raises(LmserveError, match="stopped"):
        await making.begun()
    assert not engine.submits and len(strict.streams) == 0


async def test_going_on_within_the_grace(asker: Asker, engine: FakeEngine) -> None:
    engine.will_hang("a")
    making = asker.ask(key=KEY)
    waiting = asyncio.create_task(making.begun())
    await making.started()
    waiting.cancel()
    await asyncio.wait([waiting])
    await making.begun()
    assert not engine.aborts


async def test_a_client_that_leaves_before_it_knows_the_id_ends_it(
    asker: Asker, engine: FakeEngine
) -> None:
    engine.will_hang()
    making = asker.ask()
    waiting = asyncio.create_task(making.begun())
    await making.started()
    waiting.cancel()
    await asyncio.wait([waiting, making.task])
    assert len(engine.aborts) == 1


@pytest.mark.parametrize("pieces", [(), ("a",)])
async def test_closing_stops_it(asker: Asker, engine: FakeEngine, pieces: tuple[str, ...]) -> None:
    engine.will_hang(*pieces)
    making = asker.ask(key=KEY)
    await making.started()
    if pieces:
        await making.begun()
    await asker.resumable.close()
    assert making.stream.ended and len(engine.aborts) == 1
    if pieces:
        assert (await read(making))[1].startswith("!the answer was stopped")
    else:
        with pytest.raises(LmserveError, match="stopped"):
            await making.begun()
