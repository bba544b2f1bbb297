from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import ExitStack
from typing import Any

import pytest

from lmserve.bridge.assets import EOS_ID
from lmserve.bridge.fake import FakeEngine
from lmserve.bridge.mailbox import Mailbox
from lmserve.errors import (
    EngineDied,
    EngineError,
    EngineUnavailable,
    InvalidField,
    ModelError,
    ModelNotFound,
    Overloaded,
    PromptTooLong,
    RequestError,
)
from lmserve.messages import unpack_ids
from lmserve.service.generate import Generation, Service, collect
from lmserve.service.metrics import Metrics
from lmserve.service.prompt import ModelText, is_short
from lmserve.settings import ServerSettings, Settings
from lmserve.text.tokenizer import Tokenizer
from lmserve.types import Done, Event, GenerateRequest, TextDelta


def chat(**fields: Any) -> GenerateRequest:
    return GenerateRequest(messages=[{"role": "user", "content": "hi"}], **fields)


async def read(generation: Generation) -> list[Event]:
    with generation.lease():
        return [event async for event in generation.events()]


# --- what comes out -----------------------------------------------------------------------


async def test_a_chat_is_rendered_run_and_told(engine: FakeEngine, service: Service) -> None:
    engine.will_say("Hel", "lo")
    generation = await service.generate(chat(seed=7))
    events = await read(generation)
    assert [event.text for event in events[:-1] if isinstance(event, TextDelta)] == ["Hel", "lo"]
    done = events[-1]
    assert isinstance(done, Done)
    assert (done.finish_reason, done.stop_reason) == ("stop", None)
    (submit,) = engine.submits
    # the marks are single tokens: the prompt was rendered, then tokenised
    assert unpack_ids(submit.token_ids)[:1] == [256]
    assert submit.sampling.seed == 7
    assert generation.model == "fake"
    assert done.usage.prompt_tokens == generation.num_prompt_tokens
    assert done.usage.prompt_tokens == len(unpack_ids(submit.token_ids))
    assert done.usage.completion_tokens == len("Hello") + 1  # the end token was made too


async def test_the_mock_speaks_until_max_tokens(service: Service) -> None:
    text, done = await collect(await service.generate(chat(max_tokens=5)))
    assert len(text.split()) == 5
    assert (done.finish_reason, done.usage.completion_tokens) == ("length", 5)


async def test_plain_text_and_token_ids_run_as_they_are(
    engine: FakeEngine, service: Service
) -> None:
    for request in (GenerateRequest(text="abc"), GenerateRequest(token_ids=list(b"abc"))):
        engine.will_say("d")
        assert (await collect(await service.generate(request)))[0] == "d"
    assert [unpack_ids(submit.token_ids) for submit in engine.submits] == [list(b"abc")] * 2


async def test_a_long_prompt_gives_the_same_tokens(engine: FakeEngine, service: Service) -> None:
    text = "x" * 8001  # this one is tokenised in a thread
    with_room = GenerateRequest(text=text, max_tokens=1)
    await collect(await service.generate(with_room))
    assert unpack_ids(engine.submits[0].token_ids) == list(text.encode())


async def test_a_delta_is_never_empty_and_never_half_a_character(
    engine: FakeEngine, service: Service
) -> None:
    pieces = [[byte] for byte in "é😀".encode()]
    engine.will_say(*pieces)
    events = await read(await service.generate(chat()))
    deltas = [event for event in events if isinstance(event, TextDelta)]
    assert [delta.text for delta in deltas] == ["é", "😀"]
    assert [delta.token_ids for delta in deltas] == [list("é".encode()), list("😀".encode())]


async def test_half_a_character_at_the_end_is_told(engine: FakeEngine, service: Service) -> None:
    engine.will_say([*b"a", 0xE4], finish="length")
    text, done = await collect(await service.generate(chat()))
    assert (text, done.finish_reason) == ("a\ufffd", "length")


@pytest.mark.parametrize("skip", [True, False])
async def test_the_end_token_is_never_shown(
    engine: FakeEngine, service: Service, skip: bool
) -> None:
    engine.will_say([*b"a", 256, *b"b"])
    text, _ = await collect(await service.generate(chat(skip_special_tokens=skip)))
    assert text == ("ab" if skip else "a<|im_start|>b")


async def test_a_stop_token_of_the_request_is_named(engine: FakeEngine, service: Service) -> None:
    engine.will_say("ok")
    _, done = await collect(await service.generate(chat(stop_token_ids=(EOS_ID,))))
    assert (done.finish_reason, done.stop_reason) == ("stop", EOS_ID)


# --- stop strings ---------------------------------------------------------------------------


async def test_a_stop_string_ends_the_engines_work(engine: FakeEngine, service: Service) -> None:
    engine.will_hang("one ST", "OP two")
    text, done = await collect(await service.generate(chat(stop=("STOP",))))
    assert text == "one "
    assert (done.finish_reason, done.stop_reason) == ("stop", "STOP")
    assert done.usage.completion_tokens == len("one STOP")
    assert len(engine.aborts) == 1


async def test_a_stop_string_in_the_last_step_needs_no_abort(
    engine: FakeEngine, service: Service
) -> None:
    engine.will_say("one STOP two")
    text, done = await collect(await service.generate(chat(stop=("STOP",))))
    assert (text, done.stop_reason) == ("one ", "STOP")
    assert done.usage.completion_tokens == len("one STOP")
    assert engine.aborts == []


async def test_text_held_for_a_stop_string_comes_at_the_end(
    engine: FakeEngine, service: Service
) -> None:
    engine.will_say("a ST")
    text, done = await collect(await service.generate(chat(stop=("STOP",))))
    assert (text, done.stop_reason) == ("a ST", None)


async def test_stop_strings_wait_for_min_tokens(engine: FakeEngine, service: Service) -> None:
    engine.will_hang("XaXb")
    text, done = await collect(await service.generate(chat(stop=("X",), min_tokens=2)))
    assert (text, done.usage.completion_tokens) == ("Xa", 3)


# --- refusals and failures ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "error", "param"),
    [
        (chat(model="other"), ModelNotFound, "model"),
        (chat(temperature=3.0), InvalidField, "temperature"),
        (GenerateRequest(messages=[]), InvalidField, "messages"),
        (GenerateRequest(messages=[{"role": "user"}]), InvalidField, "messages[0].content"),
        (GenerateRequest(text="\ud800"), RequestError, None),
    ],
)
async def test_a_refused_request_runs_nothing(
    engine: FakeEngine,
    service: Service,
    request_: GenerateRequest,
    error: type[RequestError],
    param: str | None,
) -> None:
    with pytest.raises(error) as caught:
        await service.generate(request_)
    assert caught.value.param == param
    assert engine.submits == []
    assert service.inflight == 0


async def test_a_failed_request_fails_alone(engine: FakeEngine, service: Service) -> None:
    engine.will_fail("out of luck", "ab")
    engine.will_say("fine")
    bad, good = await service.generate(chat()), await service.generate(chat())
    with bad.lease(), good.lease():
        seen = []
        with pytest.raises(EngineError, match="out of luck"):
            async for event in bad.events():
                seen.append(event)  # noqa: PERF401  the list is wanted although it raises
        assert [event.text for event in seen if isinstance(event, TextDelta)] == ["ab"]
        assert (await collect(good))[0] == "fine"


async def test_the_engines_death_is_told(engine: FakeEngine, service: Service) -> None:
    engine.will_hang("ab")
    generation = await service.generate(chat())
    with generation.lease():
        assert isinstance(await anext(generation.events()), TextDelta)
        engine.die()
        with pytest.raises(EngineDied):
            await anext(generation.events())
        with pytest.raises(StopAsyncIteration):
            await anext(generation.events())
    with pytest.raises(EngineUnavailable, match="not ready"):
        await service.generate(chat())
    engine.resume()
    engine.will_say("again")
    assert (await collect(await service.generate(chat())))[0] == "again"
    assert engine.aborts == []


async def test_a_damaged_tokenizer_is_told(engine: FakeEngine, service: Service) -> None:
    assert engine.info is not None
    with open(engine.info.tokenizer_file, "w") as file:  # noqa: ASYNC230  a test's small file
        file.write("{}")
    with pytest.raises(ModelError, match="cannot be read"):
        await service.prepare()


# --- leases: cancelled at every phase -------------------------------------------------------


async def test_cancelled_while_waiting_for_the_first_token(
    engine: FakeEngine, service: Service
) -> None:
    engine.will_hang()
    started = asyncio.Event()

    async def handler() -> None:
        generation = await service.generate(chat())
        with generation.lease():
            started.set()
            await anext(generation.events())

    await cancel(handler(), started)
    assert len(engine.aborts) == 1
    assert service.inflight == 0


async def test_cancelled_in_mid_stream(engine: FakeEngine, service: Service) -> None:
    engine.will_hang("one")
    started = asyncio.Event()

    async def handler() -> None:
        generation = await service.generate(chat())
        with generation.lease():
            async for _ in generation.events():
                started.set()

    await cancel(handler(), started)
    assert len(engine.aborts) == 1


async def test_cancelled_while_writing(engine: FakeEngine, service: Service) -> None:
    engine.will_hang("one")
    started = asyncio.Event()

    async def handler() -> None:
        generation = await service.generate(chat())
        with generation.lease():
            async for _ in generation.events():
                started.set()
                await asyncio.Event().wait()  # a client that reads nothing

    await cancel(handler(), started)
    assert len(engine.aborts) == 1


async def test_cancelled_before_the_lease(engine: FakeEngine, service: Service) -> None:
    engine.will_hang("one")
    started = asyncio.Event()

    async def handler() -> None:
        await service.generate(chat())
        started.set()
        await asyncio.Event().wait()  # the response's headers

    await cancel(handler(), started)
    assert len(engine.aborts) == 1
    assert service.inflight == 0


async def test_cancelled_while_tokenising(
    engine: FakeEngine, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread works on, and counts until it is done."""
    await service.prepare()
    go_on, started = threading.Event(), threading.Barrier(3)

    def token_ids(*_: Any) -> list[int]:
        started.wait(30)
        go_on.wait(30)
        return [1]

    monkeypatch.setattr(ModelText, "token_ids", token_ids)
    tasks = [
        asyncio.create_task(service.generate(GenerateRequest(text="x" * 8001))) for _ in range(3)
    ]
    await asyncio.to_thread(started.wait, 30)  # both threads are at work
    assert service.inflight == 3
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    num_held = service.inflight
    go_on.set()
    assert num_held == 2  # there are two threads; what waited for one is dropped
    await service.drain(30)
    assert service.inflight == 0
    assert engine.submits == []


@pytest.mark.parametrize(
    "request_",
    [
        chat(chat_template_kwargs={"x": "y" * 8001}),
        chat(chat_template_kwargs={"x": {"y" * 8001: 1}}),
        chat(chat_template_kwargs={"x": [[[]]] * 8001}),
        GenerateRequest(text="x" * 8001),
        GenerateRequest(messages=[{"role": "user", "content": "x" * 8001}]),
        GenerateRequest(messages=[{"role": "user", "content": ""}] * 2000),
    ],
)
async def test_all_that_makes_a_prompt_long_counts(request_: GenerateRequest) -> None:
    assert not is_short(request_, 8000)
    assert is_short(request_, 80_000)


def test_deep_input_is_counted_too() -> None:
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    assert is_short(chat(chat_template_kwargs={"x": deep}), 8000)


async def test_a_prompt_too_long_is_not_tokenised(
    engine: FakeEngine, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(*_: Any, **__: Any) -> list[int]:
        raise AssertionError("it was tokenised")

    monkeypatch.setattr(Tokenizer, "encode", encode)
    for request in (
        GenerateRequest(text="x" * 10**6),
        GenerateRequest(messages=[{"role": "user", "content": "x" * 10**6}]),
    ):
        with pytest.raises(PromptTooLong):
            await service.generate(request)
    assert service.inflight == 0


# --- several at once ------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [GenerateRequest(text=""), GenerateRequest(text="x" * 9000)])
async def test_one_refused_prompt_runs_none(
    engine: FakeEngine, service: Service, bad: GenerateRequest
) -> None:
    with pytest.raises(RequestError):
        await service.generate_all([GenerateRequest(text="a"), bad])
    assert engine.submits == []
    assert service.inflight == 0


async def test_an_engine_lost_between_two_ends_the_first(
    engine: FakeEngine, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = engine.submit

    def once(*args: Any) -> Mailbox:
        if engine.submits:
            raise EngineUnavailable("gone")
        return submit(*args)

    monkeypatch.setattr(engine, "submit", once)
    with pytest.raises(EngineUnavailable):
        await service.generate_all([chat(), chat()])
    assert engine.aborts == [engine.submits[0].rid]
    assert service.inflight == 0


async def test_a_reader_that_stops_early(engine: FakeEngine, service: Service) -> None:
    generation = await service.generate(chat())
    with generation.lease():
        async for _ in generation.events():
            break
    assert generation.ended
    assert len(engine.aborts) == 1


async def test_the_last_lease_counts(engine: FakeEngine, service: Service) -> None:
    engine.will_say("ab")
    generation = await service.generate(chat())
    with generation.lease():
        with generation.lease():
            pass
        assert not generation.ended
        assert (await collect(generation))[0] == "ab"
    assert engine.aborts == []


async def test_a_lease_outlives_the_task_that_asked(engine: FakeEngine, service: Service) -> None:
    engine.will_say("ab")
    leased = asyncio.Event()

    async def ask() -> Generation:
        generation = await service.generate(chat())
        stack.enter_context(generation.lease())
        leased.set()
        return generation

    with ExitStack() as stack:
        generation = await asyncio.create_task(ask())
        assert (await collect(generation))[0] == "ab"


async def cancel(handler: Coroutine[Any, Any, None], when: asyncio.Event) -> None:
    task = asyncio.create_task(handler)
    await when.wait()
    await asyncio.sleep(0)  # into the wait that follows
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# --- limits on what is held -----------------------------------------------------------------


def limited(engine: FakeEngine, **limits: int) -> tuple[Service, Metrics]:
    settings = Settings(server=ServerSettings(model_name="fake", **limits))
    metrics = Metrics(engine, settings)
    return Service(engine, settings, metrics), metrics


async def test_too_many_requests(engine: FakeEngine) -> None:
    service, metrics = limited(engine, max_queued_requests=1)
    engine.will_hang()
    first = await service.generate(chat())
    with first.lease():
        with pytest.raises(Overloaded, match="max_queued_requests"):
            await service.generate(chat())
        assert len(engine.submits) == 1
    engine.will_say("ok")
    assert (await collect(await service.generate(chat())))[0] == "ok"
    assert [name for name, num in metrics.rejections.items() if num] == ["requests"]
    assert metrics.rejections["requests"] == 1
    service.close()


async def test_too_many_tokens(engine: FakeEngine) -> None:
    service, metrics = limited(engine, max_queued_tokens=10)
    ten = GenerateRequest(text="0123456789")
    engine.will_hang()
    first = await service.generate(GenerateRequest(text="longer than the limit"))
    with first.lease():
        with pytest.raises(Overloaded, match="max_queued_tokens"):
            await service.generate(ten)
        assert service.inflight == 1
    engine.will_say("ok")
    await collect(await service.generate(ten))
    assert (service.inflight, metrics.rejections["tokens"]) == (0, 1)
    service.close()


# --- the end --------------------------------------------------------------------------------


async def test_drain_lets_running_answers_finish(engine: FakeEngine, service: Service) -> None:
    engine.will_say("a", "b")
    generation = await service.generate(chat())
    reader = asyncio.create_task(collect(generation))
    with generation.lease():
        await service.drain(30)
    assert (await reader)[0] == "ab"
    with pytest.raises(EngineUnavailable, match="shutting down"):
        await service.generate(chat())


async def test_drain_aborts_what_does_not_finish(engine: FakeEngine, service: Service) -> None:
    engine.will_hang("ab")
    generation = await service.generate(chat())
    with generation.lease():
        reader = asyncio.create_task(collect(generation))
        await service.drain(0)
        text, done = await reader
    assert (text, done.finish_reason) == ("ab", "abort")
    assert len(engine.aborts) == 1


async def test_the_engines_close_is_an_abort(engine: FakeEngine, service: Service) -> None:
    engine.will_hang("ab")
    generation = await service.generate(chat())
    with generation.lease():
        await anext(generation.events())
        await engine.close()
        done = await anext(generation.events())
    assert isinstance(done, Done)
    assert done.finish_reason == "abort"
