"""What an answer tells beside its text, however its stream is cut."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmserve.bridge import inventions
from lmserve.bridge.assets import EOS_ID
from lmserve.bridge.fake import FakeEngine
from lmserve.service.generate import Generation, Service, collect
from lmserve.service.metrics import Metrics
from lmserve.settings import Settings
from lmserve.types import Done, Event, GenerateRequest, TextDelta
from tests.service.conftest import Clock
from tests.whole import gather


def ask(**fields: Any) -> GenerateRequest:
    return GenerateRequest(**{"text": "hi"} | fields)


async def read(generation: Generation) -> list[Event]:
    with generation.lease():
        return [event async for event in generation.events()]


async def deltas(service: Service, **fields: Any) -> list[TextDelta]:
    events = await read(await service.generate(ask(**fields)))
    return [event for event in events if isinstance(event, TextDelta)]


# --- log probabilities ----------------------------------------------------------------------


async def test_nobody_asked(service: Service) -> None:
    for delta in await deltas(service, max_tokens=3):
        assert (delta.logprobs, delta.parts, delta.progress) == (None, None, None)


async def test_each_token_has_one_and_the_end_token_is_hidden(
    engine: FakeEngine, service: Service
) -> None:
    engine.will_say("ab", "c")
    first, second = await deltas(service, logprobs=2)
    assert first.logprobs == inventions.logprobs_of([*b"ab"], 2)
    assert second.logprobs == inventions.logprobs_of([*b"c"], 2)
    assert engine.submits[0].sampling.logprobs == 2


async def test_held_tokens_come_with_the_text_that_shows_them(
    engine: FakeEngine, service: Service
) -> None:
    engine.will_say("a", "S", "T", "b")
    told = await deltas(service, logprobs=0, stop=("STOP",))
    assert [(delta.text, delta.token_ids) for delta in told] == [
        ("a", [*b"a"]),
        ("STb", [*b"STb"]),
    ]
    assert told[1].logprobs == inventions.logprobs_of([*b"STb"], 0)


async def test_tokens_without_text_are_told_at_the_end(
    engine: FakeEngine, service: Service
) -> None:
    engine.will_say("a", [256], [256])  # a special token, which is not shown
    told = await deltas(service, logprobs=0)
    assert [(delta.text, delta.token_ids) for delta in told] == [("a", [*b"a"]), ("", [256, 256])]
    assert told[1].logprobs == inventions.logprobs_of([256, 256], 0)
    engine.will_say("a", [256])
    assert [delta.text for delta in await deltas(service)] == ["a"]  # nothing to tell


pieces = st.lists(
    st.text("aSTOPé😀", max_size=5) | st.lists(st.sampled_from([256, 0xC3, 83]), max_size=3),
    max_size=8,
)
stops = st.sampled_from([(), ("STOP",), ("aS", "STO"), ("\N{REPLACEMENT CHARACTER}",)])


@given(
    pieces=pieces,
    stop=stops,
    finish=st.sampled_from(["stop", "length"]),
    include_stop=st.booleans(),
    is_late=st.booleans(),
)
def test_they_stay_beside_their_tokens(pieces: list[Any], is_late: bool, **fields: Any) -> None:
    finish = fields.pop("finish")

    async def run() -> None:
        engine = FakeEngine()
        await engine.start()
        service = Service(engine, Settings(), Metrics(engine, Settings()))
        engine.will_say(*pieces, finish=finish).will_say(*pieces, finish=finish)
        plain = await service.generate(ask(**fields))
        plain_text, plain_done = await collect(plain)
        generation = await service.generate(ask(logprobs=1, **fields))
        with generation.lease():
            if is_late:  # all steps are one delivery
                for _ in range(len(pieces) + 2):
                    await asyncio.sleep(0)
            *told, done = [event async for event in generation.events()]
        assert isinstance(done, Done) and done == plain_done
        assert "".join(delta.text for delta in told) == plain_text
        for delta in told:
            assert isinstance(delta, TextDelta)
            assert delta.logprobs == inventions.logprobs_of(delta.token_ids, 1)
            assert delta.text or delta is told[-1]
        made = [
            id for piece in pieces for id in (piece.encode() if isinstance(piece, str) else piece)
        ]
        shown = [id for delta in told for id in delta.token_ids]
        assert generation.unshown_ids == []
        assert shown == made[: len(shown)]
        num_hidden = done.usage.completion_tokens - len(shown)
        assert num_hidden == int(finish == "stop" and shown == made) or done.stop_reason is not None
        if done.stop_reason is None or num_hidden:
            assert shown == made
        service.close()
        await engine.close()

    asyncio.run(run())


async def test_prompt_log_probabilities_are_all_there_before_the_first_delta(
    engine: FakeEngine, service: Service
) -> None:
    prompt = [1, 2, 3, 4, 5] * 200
    generation = await service.generate(
        ask(text=None, token_ids=prompt, prompt_logprobs=2, prompt_logprobs_start=3, max_tokens=2)
    )
    with generation.lease():
        await anext(generation.events())
        assert generation.prompt_logprobs == inventions.logprobs_of(prompt[3:], 2)
    assert [*generation.prompt_ids] == prompt


async def test_a_prompt_alone(engine: FakeEngine, service: Service, metrics: Metrics) -> None:
    generation = await service.generate(ask(text="abc", prompt_logprobs=0, max_tokens=0))
    (done,) = await read(generation)
    assert isinstance(done, Done)
    assert (done.finish_reason, done.usage.completion_tokens) == ("length", 0)
    assert generation.prompt_logprobs == inventions.logprobs_of([*b"bc"], 0)
    assert metrics.prompt_tokens == 3
    text, done = await collect(await service.generate(ask(max_tokens=0, may_be_empty=True)))
    assert (text, done.finish_reason) == ("", "length")
    assert engine.submits[1].sampling.prompt_logprobs is None


# --- stop strings that are shown, progress, times -------------------------------------------------


@pytest.mark.parametrize("cut", [("one STOP two",), ("one ST", "OP two"), tuple("one STOP two")])
async def test_the_stop_string_is_shown_and_nothing_after_it(
    engine: FakeEngine, service: Service, cut: tuple[str, ...]
) -> None:
    engine.will_say(*cut)
    generation = await service.generate(ask(stop=("STOP",), include_stop=True))
    text, done = await collect(generation)
    assert (text, done.stop_reason) == ("one STOP", "STOP")


async def test_a_stop_string_that_is_met_at_the_end_is_shown(
    engine: FakeEngine, service: Service
) -> None:
    engine.will_say([*b"a", 0xC3], finish="length")
    stop = "\N{REPLACEMENT CHARACTER}"  # what half a character becomes
    text, done = await collect(await service.generate(ask(stop=(stop,), include_stop=True)))
    assert (text, done.stop_reason) == ("a" + stop, stop)


async def test_a_stop_longer_than_any_answer_holds_nothing_back(
    engine: FakeEngine, service: Service
) -> None:
    assert engine.info is not None
    longest = engine.info.max_model_len * 100
    engine.will_say("x" * 50, "x")
    told = await deltas(service, stop=("x" * longest,))
    assert [len(delta.text) for delta in told] == [50, 1]


async def test_progress_comes_before_the_text(
    engine: FakeEngine, service: Service, clock: Clock
) -> None:
    generation = await service.generate(ask(text="x" * 600, tell_progress=True, max_tokens=1))
    clock.now_s += 2.0
    told = [event for event in await read(generation) if isinstance(event, TextDelta)]
    progress = [delta.progress for delta in told if delta.progress is not None]
    assert [each.num_run for each in progress] == [256, 512, 600]
    assert {(each.num_tokens, each.num_cached, each.passed_s) for each in progress} == {
        (600, 0, 2.0)
    }
    assert [bool(delta.text) for delta in told] == [False, False, True]
    assert told[0].token_ids == []


async def test_progress_through_follow(service: Service) -> None:
    generation = await service.generate(ask(text="x" * 300, tell_progress=True, max_tokens=1))
    told: list[TextDelta] = []

    def show(delta: TextDelta) -> bool:
        told.append(delta)
        return True

    with generation.lease():
        await generation.follow(show)
    assert [delta.progress is not None for delta in told] == [True, True]


async def test_timings(engine: FakeEngine, service: Service, clock: Clock) -> None:
    engine.will_say("a", "b", "c")
    generation = await service.generate(ask())
    assert generation.timings.queue_s is None
    with generation.lease():
        clock.now_s += 3.0
        events = generation.events()
        await anext(events)
        clock.now_s += 2.0
        async for _ in events:
            pass
    timings = generation.timings
    assert (timings.queue_s, timings.prompt_s, timings.answer_s) == (0.0, 3.0, 2.0)
    assert (timings.num_prompt_run, timings.num_tokens) == (2, 4)


# --- the whole answer ------------------------------------------------------------------------


async def test_gathered(engine: FakeEngine, service: Service) -> None:
    engine.will_say("ab", [256], "c", [256])
    whole = await gather(await service.generate(ask(logprobs=1)))
    assert (whole.text, whole.token_ids) == ("abc", [97, 98, 256, 99, 256])
    assert whole.logprobs == inventions.logprobs_of(whole.token_ids, 1)
    assert (whole.parts, whole.done.finish_reason) == ([], "stop")
    engine.will_say("ab", [256])
    plain = await gather(await service.generate(ask()))
    assert (plain.token_ids, plain.logprobs) == ([97, 98, 256], [])
    assert EOS_ID not in whole.token_ids
