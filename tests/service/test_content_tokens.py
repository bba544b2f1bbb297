"""Whose tokens the log probabilities are of, however the steps come together."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lmserve.bridge import inventions
from lmserve.bridge.fake import FakeEngine
from lmserve.service.content_tokens import named
from lmserve.service.generate import Service
from lmserve.service.metrics import Metrics
from lmserve.service.parts import joined
from lmserve.settings import ServerSettings, Settings
from lmserve.types import CallBegun, Content, GenerateRequest, TextDelta, Tool

CALL = '<tool_call>\n{"name": "f", "arguments": {"t": "Hm"}}\n</tool_call>'
SERVER = ServerSettings(tool_call_parser="hermes", reasoning_parser="think")


def rated(text: str) -> Content:
    """By tokens that are its bytes."""
    logprobs = inventions.logprobs_of([*text.encode()], 1)
    return Content(text, named(logprobs, lambda id: bytes([id])))


@pytest.fixture
async def service(engine: FakeEngine, settings: Settings) -> Service:
    settings = replace(settings, server=SERVER)
    return Service(engine, settings, Metrics(engine, settings))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    ("text", "contents"),
    [
        ("Hm, é 😀 a < b <to", ["Hm, é 😀 a < b <to"]),
        ("<think>Hm</think>\n\nHm", ["Hm"]),
        ("Hm </think> t", [" t"]),
        ("Let me see. " + CALL, ["Let me see."]),
        ("t" + CALL + "\n t", ["t", "t"]),
        (CALL + CALL, []),
    ],
)
async def test_contents_have_their_own_tokens(
    engine: FakeEngine, service: Service, text: str, contents: list[str], size: int
) -> None:
    if text.startswith("Hm </think>"):
        contents = ["Hm </think> t"]  # nothing was begun
    data = [*text.encode()]
    engine.will_say(*[data[begin : begin + size] for begin in range(0, len(data), size)])
    messages = [{"role": "user", "content": "hi"}]
    generation = await service.generate(
        GenerateRequest(messages=messages, tools=(Tool("f"),), splits=True, logprobs=1)
    )
    with generation.lease():
        deltas = [each async for each in generation.events() if isinstance(each, TextDelta)]
    parts = joined([part for delta in deltas for part in delta.parts or ()])
    assert [part for part in parts if isinstance(part, Content)] == [*map(rated, contents)]
    assert len([part for part in parts if isinstance(part, CallBegun)]) == text.count(CALL)
    told = [each for delta in deltas for each in delta.logprobs or ()]
    assert told == inventions.logprobs_of(data, 1)
