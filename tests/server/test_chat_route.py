"""POST /v1/chat/completions over the application."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp.test_utils import TestClient

from lmserve.messages import unpack_ids

GOLDEN = Path(__file__).parent.parent / "golden"
URL = "/v1/chat/completions"
HELLO: dict[str, Any] = {"model": "mock", "messages": [{"role": "user", "content": "hi"}]}


def golden(name: str) -> bytes:
    return (GOLDEN / name).read_bytes()


def normalised(stream: bytes) -> bytes:
    stream = re.sub(rb'"id":"(chatcmpl|cmpl)-[0-9a-f]{32}"', rb'"id":"\1-0"', stream)
    return re.sub(rb'"created":\d{10}', b'"created":0', stream)


async def test_an_answer(client: TestClient, fake: Any) -> None:
    fake.will_say("Hel", "lo")
    response = await client.post(URL, json=HELLO)
    assert response.status == 200
    assert response.content_type == "application/json"
    body = await response.json()
    assert re.fullmatch("chatcmpl-[0-9a-f]{32}", body.pop("id"))
    assert body.pop("created") > 1_600_000_000
    usage = body.pop("usage")
    assert body == {
        "object": "chat.completion",
        "model": "mock",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello"},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
    }
    prompt = unpack_ids(fake.submits[0].token_ids)
    assert usage["prompt_tokens"] == len(prompt)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0}


@pytest.mark.parametrize(
    ("fields", "transcript"),
    [
        ({}, "chat.sse"),
        ({"stream_options": {"include_usage": True}}, "chat_usage.sse"),
        ({"max_tokens": 3}, "chat_length.sse"),
        ({"stop": "lo"}, "chat_stop.sse"),
    ],
)
async def test_a_stream_to_the_byte(
    client: TestClient, fake: Any, fields: dict[str, Any], transcript: str
) -> None:
    fake.will_say("Hel", "lo", ' "ü"\n')
    response = await client.post(URL, json=HELLO | {"stream": True} | fields)
    assert response.status == 200
    assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert response.headers["Cache-Control"] == "no-cache"
    assert response.headers["X-Accel-Buffering"] == "no"
    expected = await asyncio.to_thread(golden, transcript)
    assert normalised(await response.read()) == expected


async def test_a_character_cut_by_a_step_is_one_delta(client: TestClient, fake: Any) -> None:
    first, second = "ü".encode()
    fake.will_say([first], [second])
    response = await client.post(URL, json=HELLO | {"stream": True})
    events = (await response.text()).split("\n\n")
    texts = [
        choice["delta"].get("content")
        for event in events
        if event.startswith("data: {")
        for choice in orjson.loads(event[6:])["choices"]
    ]
    assert texts == ["", "ü", None]


async def test_nothing_said_still_has_a_role_and_an_end(client: TestClient, fake: Any) -> None:
    fake.will_say()
    response = await client.post(URL, json=HELLO | {"stream": True})
    assert normalised(await response.read()) == await asyncio.to_thread(golden, "chat_empty.sse")


async def test_a_failure_before_the_first_token_has_a_status(client: TestClient, fake: Any) -> None:
    for stream in (False, True):
        fake.will_fail("out of luck")
        response = await client.post(URL, json=HELLO | {"stream": stream})
        assert response.status == 500
        error = (await response.json())["error"]
        assert (error["message"], error["code"]) == ("out of luck", "engine_error")


async def test_a_failure_later_is_an_event(client: TestClient, fake: Any) -> None:
    fake.will_fail("out of luck", "Hel")
    response = await client.post(URL, json=HELLO | {"stream": True})
    assert response.status == 200
    assert normalised(await response.read()) == await asyncio.to_thread(golden, "chat_error.sse")


async def test_a_request_fails_alone(client: TestClient, fake: Any) -> None:
    fake.will_fail("out of luck", "Hel")
    fake.will_say("fine")
    answers = await asyncio.gather(*(client.post(URL, json=HELLO) for _ in range(2)))
    assert sorted(answer.status for answer in answers) == [200, 500]


async def test_a_dying_engine_is_told_to_its_streams(client: TestClient, fake: Any) -> None:
    fake.will_hang("Hel")
    response = await client.post(URL, json=HELLO | {"stream": True})
    fake.die()
    assert b'"code":"engine_died"' in await response.read()
    refused = await client.post(URL, json=HELLO)
    assert refused.status == 503
    assert refused.headers["Retry-After"] == "5"
    fake.resume()
    fake.will_say("back")
    assert (await client.post(URL, json=HELLO)).status == 200


async def test_sampling_reaches_the_engine(client: TestClient, fake: Any) -> None:
    fields = {"temperature": 0, "top_k": 5, "seed": 3, "max_tokens": 7, "ignore_eos": True}
    await client.post(URL, json=HELLO | fields)
    sampling = fake.submits[0].sampling
    assert (sampling.temperature, sampling.top_k, sampling.seed) == (0.0, 5, 3)
    assert (sampling.max_tokens, sampling.ignore_eos) == (7, True)


async def test_many_messages(client: TestClient, fake: Any) -> None:
    """Too many for the context; rendered and counted all the same, off the loop."""
    message = {"role": "user", "content": "hi"}
    response = await client.post(URL, json={"messages": [message] * 10_000})
    assert response.status == 400
    assert (await response.json())["error"]["code"] == "context_length_exceeded"
    assert fake.submits == []
