"""Reasoning and calls told apart as an answer comes."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmserve.bridge import inventions
from lmserve.bridge.fake import FakeEngine
from lmserve.service.generate import Generation, Service
from lmserve.service.metrics import Metrics
from lmserve.service.parts import joined
from lmserve.settings import Settings
from lmserve.text.parsing.calls import CallParser
from lmserve.text.parsing.forms import HERMES, THINK
from lmserve.text.parsing.reasoning import ReasoningParser
from lmserve.types import (
    CallArguments,
    CallBegun,
    Content,
    Done,
    GenerateRequest,
    Part,
    Reasoning,
    TextDelta,
)
from tests.whole import gather

CALL = '<tool_call>\n{"name": "f", "arguments": {"x": "é"}}\n</tool_call>'


async def split(service: Service, **fields: Any) -> Generation:
    """As one of a model that reasons and calls functions."""
    request = GenerateRequest(**{"text": "hi"} | fields)
    ticket = service._entrance.enter()
    (work,) = await service._preparer.works(request, [ticket], 0.0, None)
    parser = ReasoningParser(THINK, CallParser(HERMES), begun=False)
    return service._start(replace(work, parser=parser), ticket)


def without_ids(parts: list[Part]) -> list[Part]:
    """And without log probabilities."""
    return [
        replace(part, id="call")
        if isinstance(part, CallBegun)
        else Content(part.text)
        if isinstance(part, Content)
        else part
        for part in parts
    ]


WHOLE = [
    Reasoning("hm"),
    Content("so:"),
    CallBegun(0, "call", "f"),
    CallArguments(0, '{"x": "é"}'),
]


@pytest.mark.parametrize("size", [1, 3, 1000])
async def test_parts_however_the_stream_is_cut(
    engine: FakeEngine, service: Service, size: int
) -> None:
    data = f"<think>hm</think>so:{CALL}".encode()
    engine.will_say(*([*data[start : start + size]] for start in range(0, len(data), size)))
    whole = await gather(await split(service, logprobs=1))
    assert without_ids(whole.parts) == WHOLE
    assert whole.text == data.decode()  # as the model made it
    assert whole.logprobs == inventions.logprobs_of([*data], 1)
    assert whole.done.finish_reason == "tool_calls"
    assert whole.done.usage.reasoning_tokens == len("hm</think>")


async def test_without_a_call_it_stops(
    engine: FakeEngine, service: Service, metrics: Metrics
) -> None:
    engine.will_say("<think>hm</think>", "so").will_say(CALL, finish="length").will_say(CALL)
    whole = await gather(await split(service))
    assert (whole.done.finish_reason, whole.parts) == ("stop", [Reasoning("hm"), Content("so")])
    assert (await gather(await split(service))).done.finish_reason == "length"
    assert (await gather(await split(service))).done.finish_reason == "tool_calls"
    assert metrics.finished["tool_calls"] == 1


async def test_reasoning_that_is_cut_off_is_all_reasoning(
    engine: FakeEngine, service: Service
) -> None:
    engine.will_say("<think>", "abc", finish="length")
    whole = await gather(await split(service))
    assert (whole.parts, whole.done.usage.reasoning_tokens) == ([Reasoning("abc")], 3)


async def test_what_the_parser_held_is_told_when_a_stop_string_ends_it(
    engine: FakeEngine, service: Service
) -> None:
    engine.will_hang("a<tool", "STOP")
    generation = await split(service, stop=("STOP",))
    with generation.lease():
        *told, done = [event async for event in generation.events()]
    parts = joined([part for delta in told for part in delta.parts or ()])
    assert parts == [Content("a<tool")]
    assert isinstance(done, Done) and done.stop_reason == "STOP"
    # the parser's rest has no text of its own
    last = told[-1]
    assert isinstance(last, TextDelta) and (last.text, last.parts) == ("", [Content("<tool")])
    assert last.token_ids == [*b"STOP"]


async def test_a_delta_with_text_that_is_no_part_yet(engine: FakeEngine, service: Service) -> None:
    engine.will_say("a", "<tool", "s")
    generation = await split(service)
    with generation.lease():
        told = [event async for event in generation.events() if isinstance(event, TextDelta)]
    assert [delta.text for delta in told] == ["a", "<tool", "s"]
    assert [delta.parts for delta in told] == [[Content("a")], [], [Content("<tools")]]


alphabet = ["<think>", "</think>", CALL, "<tool_call>", "STOP", "é", "a", "</", "tool"]


@given(
    said=st.lists(st.sampled_from(alphabet), max_size=6).map("".join),
    cuts=st.lists(st.integers(0, 200), max_size=8),
    stop=st.sampled_from([(), ("STOP",)]),
)
def test_parts_do_not_depend_on_the_cuts(said: str, cuts: list[int], stop: tuple[str, ...]) -> None:
    data = said.encode()
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = [[*data[start:end]] for start, end in zip(places, places[1:], strict=False)]

    async def run() -> None:
        engine = FakeEngine()
        await engine.start()
        service = Service(engine, Settings(), Metrics(engine, Settings()))
        engine.will_say(said).will_say(*pieces)
        wholes = [await gather(await split(service, logprobs=0, stop=stop)) for _ in range(2)]
        assert without_ids(wholes[0].parts) == without_ids(wholes[1].parts)
        assert (wholes[0].text, wholes[0].done) == (wholes[1].text, wholes[1].done)
        assert wholes[0].logprobs == wholes[1].logprobs
        service.close()
        await engine.close()

    asyncio.run(run())


def test_pieces_are_joined_where_they_go_on_from_one_another() -> None:
    parts: list[Part] = [
        Content("a"),
        Content("b"),
        Reasoning("c"),
        CallBegun(0, "1", "f"),
        CallArguments(0, "{"),
        CallArguments(0, "}"),
        CallBegun(1, "2", "g"),
        CallArguments(1, "{}"),
        Content("d"),
    ]
    assert joined(parts) == [
        Content("ab"),
        Reasoning("c"),
        CallBegun(0, "1", "f"),
        CallArguments(0, "{}"),
        CallBegun(1, "2", "g"),
        CallArguments(1, "{}"),
        Content("d"),
    ]
    assert joined([]) == []
