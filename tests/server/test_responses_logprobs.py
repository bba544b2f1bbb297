"""Log probabilities through /v1/responses, with the official client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import orjson
import pytest
from openai import AsyncOpenAI
from openai.types.responses import Response

from lmserve.server.lifecycle import Server
from lmserve.settings import SessionSettings, Settings
from tests.server.sdk_types import TYPES

LOGPROBS: Any = "message.output_text.logprobs"


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    server = replace(settings.server, reasoning_parser="think")
    return replace(settings, server=server, sessions=SessionSettings(data_dir=str(tmp_path)))


@pytest.fixture
async def api(server: Server) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def spelled(logprobs: Any) -> bytes:
    return b"".join(bytes(each["bytes"]) for each in logprobs)


async def test_whole_and_read_again(api: AsyncOpenAI, fake: Any) -> None:
    fake.will_say("<think>Hm</think>", "Sch\u00f6n")
    raw = await api.responses.with_raw_response.create(
        input="hi", include=[LOGPROBS], top_logprobs=2
    )
    answer = Response.model_validate_json(raw.content, strict=True)
    assert answer.top_logprobs == 2
    told = orjson.loads(raw.content)
    [text] = told["output"][1]["content"]
    assert spelled(text["logprobs"]) == "Sch\u00f6n".encode()
    first, *_ = text["logprobs"]
    assert (first["token"], first["logprob"]) == ("S", -0.25)
    assert [each["token"] for each in first["top_logprobs"]] == ["S", "T"]
    again = await api.responses.with_raw_response.retrieve(answer.id)
    assert orjson.loads(again.content) == told


async def test_events_have_those_of_their_tokens(api: AsyncOpenAI, fake: Any) -> None:
    fake.will_say("<think>Hm</think>", "Sch", "\u00f6n")
    create = api.responses.with_streaming_response.create
    async with create(input="hi", include=[LOGPROBS], stream=True) as response:
        lines = [line async for line in response.iter_lines()]
        id = response.headers["x-stream-id"]
    events = [orjson.loads(line[6:]) for line in lines if line.startswith("data: ")]
    for event in events:
        TYPES[event["type"]].model_validate_json(orjson.dumps(event), strict=True)
    deltas = [each for each in events if each["type"] == "response.output_text.delta"]
    assert all(spelled(each["logprobs"]) == each["delta"].encode() for each in deltas)
    assert "".join(each["delta"] for each in deltas) == "Sch\u00f6n"
    whole = [one for each in deltas for one in each["logprobs"]]
    assert all(one["top_logprobs"] == [] for one in whole)
    [done] = [each for each in events if each["type"] == "response.output_text.done"]
    part = events[-1]["response"]["output"][1]["content"][0]
    assert done["logprobs"] == part["logprobs"] == whole
    retrieve = api.responses.with_streaming_response.retrieve
    async with retrieve(id, stream=True) as response:
        assert [line async for line in response.iter_lines()] == lines


async def test_the_stream_helper_has_them(api: AsyncOpenAI, fake: Any) -> None:
    fake.will_say("Sch", "\u00f6n")
    async with api.responses.stream(
        model="mock", input="hi", include=[LOGPROBS], top_logprobs=1
    ) as stream:
        final = await stream.get_final_response()
    message: Any = final.output[0]
    assert b"".join(bytes(each.bytes) for each in message.content[0].logprobs) == (
        "Sch\u00f6n".encode()
    )


@pytest.mark.parametrize("top", [-1, 21])
async def test_too_many(api: AsyncOpenAI, top: int) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await api.responses.create(input="hi", top_logprobs=top)
    assert refused.value.param == "top_logprobs"
