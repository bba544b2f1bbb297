"""POST /v1/messages and /v1/messages/count_tokens over the application."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from typing import Any

import orjson
import pytest
from aiohttp.test_utils import TestClient
from pytest_aiohttp import AiohttpClient

from lmserve.bridge.fake import FakeEngine
from lmserve.messages import unpack_ids
from lmserve.server.app import build_app
from lmserve.server.keys import SERVICE
from lmserve.settings import Settings

URL, COUNT = "/v1/messages", "/v1/messages/count_tokens"
MESSAGES: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]
HELLO: dict[str, Any] = {"model": "mock", "messages": MESSAGES, "max_tokens": 20}
HEADERS = {"anthropic-version": "2023-06-01"}


async def post(client: TestClient, url: str = URL, **fields: Any) -> Any:
    response = await client.post(url, json=HELLO | fields, headers=HEADERS)
    body = await response.json()
    assert response.status == 200, body
    return body


async def stream(client: TestClient, **fields: Any) -> list[tuple[str, dict[str, Any]]]:
    response = await client.post(URL, json=HELLO | fields | {"stream": True}, headers=HEADERS)
    assert response.status == 200
    assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    *events, rest = (await response.text()).split("\n\n")
    assert rest == ""
    parsed = [re.fullmatch(r"event: (\w+)\ndata: (.+)", event) for event in events]
    told = [(match[1], orjson.loads(match[2])) for match in parsed if match]
    assert len(told) == len(events)
    assert all(data["type"] == name for name, data in told)
    return told


def text_of(events: list[tuple[str, dict[str, Any]]]) -> str:
    return "".join(data["delta"]["text"] for name, data in events if name == "content_block_delta")


def prompt_of(fake: Any, index: int = -1) -> list[int]:
    return unpack_ids(fake.submits[index].token_ids)


async def test_an_answer(client: TestClient, fake: Any) -> None:
    fake.will_say("Hel", "lo")
    body = await post(client)
    assert re.fullmatch("msg_[0-9a-f]{32}", body.pop("id"))
    usage = body.pop("usage")
    assert body == {
        "type": "message",
        "role": "assistant",
        "model": "mock",
        "content": [{"type": "text", "text": "Hello"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
    }
    assert usage == {
        "input_tokens": len(prompt_of(fake)),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": 6,  # the end token is one
    }


@pytest.mark.parametrize(
    ("fields", "said", "reason", "sequence"),
    [
        ({}, 'Hello "ü"', "end_turn", None),
        ({"max_tokens": 3}, "Hel", "max_tokens", None),
        ({"stop_sequences": ["x", "lo"]}, "Hel", "stop_sequence", "lo"),
    ],
)
async def test_streamed_or_whole_it_is_the_same(
    client: TestClient,
    fake: Any,
    fields: dict[str, Any],
    said: str,
    reason: str,
    sequence: str | None,
) -> None:
    for _ in range(2):
        fake.will_say("Hel", "lo", ' "ü"')
    body = await post(client, **fields)
    events = await stream(client, **fields)
    names = [name for name, _ in events]
    assert names[:3] == ["message_start", "content_block_start", "ping"]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(names[3:-3]) == {"content_block_delta"}
    assert text_of(events) == body["content"][0]["text"] == said
    start, end = events[0][1]["message"], events[-2][1]
    assert start["usage"]["input_tokens"] == body["usage"]["input_tokens"]
    assert end["usage"] == body["usage"]
    stop = {"stop_reason": reason, "stop_sequence": sequence}
    assert end["delta"] == stop == {name: body[name] for name in stop}


async def test_nothing_said(client: TestClient, fake: Any) -> None:
    fake.will_say().will_say()
    assert (await post(client))["content"] == [{"type": "text", "text": ""}]
    assert [name for name, _ in await stream(client)] == [
        "message_start",
        "content_block_start",
        "ping",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


async def test_the_prompt_is_that_of_chat(client: TestClient, fake: Any) -> None:
    await post(client, system="be brief", max_tokens=1)
    messages = [{"role": "system", "content": "be brief"}, *MESSAGES]
    await client.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 1})
    assert prompt_of(fake, 0) == prompt_of(fake, 1)


async def test_settings_reach_the_engine(client: TestClient, fake: Any) -> None:
    await post(client, temperature=0.3, top_p=0.8, top_k=7, max_tokens=4)
    sampling = fake.submits[0].sampling
    assert (sampling.temperature, sampling.top_p) == (0.3, 0.8)
    assert (sampling.top_k, sampling.max_tokens) == (7, 4)


async def test_an_answer_goes_on_from_its_beginning(client: TestClient, fake: Any) -> None:
    await post(client, max_tokens=1)
    fake.will_say(" world")
    begun = {"role": "assistant", "content": "Hello,"}
    body = await post(client, messages=[*MESSAGES, begun])
    assert prompt_of(fake) == prompt_of(fake, 0) + [*b"Hello,"]
    assert body["content"][0]["text"] == " world"


async def test_a_code_point_begun_is_not_lost(client: TestClient, fake: Any) -> None:
    first, second = "ü".encode()
    fake.will_say([first], [second])
    begun = {"role": "assistant", "content": "Hello "}
    assert text_of(await stream(client, messages=[*MESSAGES, begun])) == "ü"


async def test_counting(client: TestClient, fake: Any) -> None:
    begun = {"role": "assistant", "content": "Hello,"}
    for fields in ({}, {"system": "be brief"}, {"messages": [*MESSAGES, begun]}):
        counted = await post(client, COUNT, **fields)
        assert not fake.submits[1:]  # nothing runs
        usage = (await post(client, **fields))["usage"]
        assert counted == {"input_tokens": usage["input_tokens"]}
        fake.submits.clear()


@pytest.mark.parametrize("url", [URL, COUNT])
@pytest.mark.parametrize(
    ("fields", "status", "type", "words"),
    [
        ({"messages": []}, 400, "invalid_request_error", "messages is empty"),
        ({"messages": 7}, 400, "invalid_request_error", "messages must be an array"),
        ({"tools": [{"name": "f g"}]}, 400, "invalid_request_error", "'f g': it must have 1 to"),
        ({"model": "claude"}, 404, "not_found_error", "'claude' is not served here"),
    ],
)
async def test_refusals(
    client: TestClient, url: str, fields: dict[str, Any], status: int, type: str, words: str
) -> None:
    for streamed in (False, True):
        response = await client.post(url, json=HELLO | fields | {"stream": streamed})
        body = await response.json()
        assert response.status == status
        assert words in body["error"].pop("message")
        assert body == {
            "type": "error",
            "error": {"type": type},
            "request_id": response.headers["X-Request-Id"],
        }
        assert response.headers["request-id"] == response.headers["X-Request-Id"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"stop_sequences": ["a", ""]}, "stop_sequences[1] is empty"),
        ({"stop_sequences": ["a"] * 17}, "stop_sequences has 17 strings"),
        ({"temperature": 2.5}, "temperature is 2.5"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"top_k": -2}, "top_k is -2"),
        ({"priority": 101}, "priority is 101"),
        ({"messages": [{"role": "user", "content": "x" * 10**6}]}, "maximum context length"),
    ],
)
async def test_the_limits_are_those_of_every_route(
    client: TestClient, fields: dict[str, Any], words: str
) -> None:
    response = await client.post(URL, json=HELLO | fields)
    assert response.status == 400
    error = (await response.json())["error"]
    assert error["type"] == "invalid_request_error"
    assert words in error["message"]


async def test_errors_of_the_server(client: TestClient, fake: Any) -> None:
    for streamed in (False, True):
        fake.will_fail("out of luck")
        response = await client.post(URL, json=HELLO | {"stream": streamed})
        assert response.status == 500
        error = (await response.json())["error"]
        assert error == {"type": "api_error", "message": "out of luck"}
    fake.die()
    response = await client.post(URL, json=HELLO)
    assert (response.status, response.headers["Retry-After"]) == (503, "5")
    assert (await response.json())["error"]["type"] == "overloaded_error"


async def test_a_failure_later_is_an_event(client: TestClient, fake: Any) -> None:
    fake.will_fail("out of luck", "Hel")
    events = await stream(client)
    name, data = events[-1]
    assert name == "error"
    assert data["error"] == {"type": "api_error", "message": "out of luck"}
    assert text_of(events) == "Hel"
    assert "message_stop" not in dict(events)


async def test_what_is_ended_from_outside_says_so(client: TestClient, fake: Any) -> None:
    fake.will_hang("Hel")
    response = await client.post(URL, json=HELLO | {"stream": True})
    await response.content.readuntil(b"text_delta")
    assert client.app is not None
    client.app[SERVICE].abort_all("")
    assert b'"stop_reason":"pause_turn"' in await response.read()


async def test_a_client_that_leaves_ends_its_answer(client: TestClient, fake: Any) -> None:
    fake.will_hang("Hel")
    response = await client.post(URL, json=HELLO | {"stream": True})
    await response.content.readuntil(b"text_delta")
    response.close()
    await asyncio.wait_for(fake.aborted.wait(), 5)


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_another_method(client: TestClient, method: str) -> None:
    response = await client.request(method, URL)
    assert (response.status, response.headers["Allow"]) == (405, "POST, OPTIONS")
    assert (await response.json())["error"]["type"] == "invalid_request_error"


async def test_keys(aiohttp_client: AiohttpClient, settings: Settings, fake: FakeEngine) -> None:
    server = dataclasses.replace(settings.server, api_keys=("sk-one",))
    client = await aiohttp_client(build_app(dataclasses.replace(settings, server=server), fake))
    for url in (URL, COUNT):
        for headers, status in (
            ({"x-api-key": "sk-one"}, 200),
            ({"Authorization": "Bearer sk-one"}, 200),
            ({"x-api-key": "sk-two"}, 401),
            ({}, 401),
        ):
            response = await client.post(url, json=HELLO, headers=headers)
            assert response.status == status
            if status == 401:
                body = await response.json()
                assert (body["type"], body["error"]["type"]) == ("error", "authentication_error")


async def test_other_paths_keep_their_errors(client: TestClient) -> None:
    response = await client.post("/v1/chat/completions", json={})
    assert (await response.json())["object"] == "error"
    response = await client.get("/v1/messages/other")
    assert (await response.json())["error"]["code"] == "not_found"


async def test_the_document(client: TestClient) -> None:
    document = await (await client.get("/openapi.json")).json()
    operation = document["paths"][URL]["post"]
    media = operation["responses"]["200"]["content"]
    assert set(media) == {"application/json", "text/event-stream"}
    assert "MessageStartEvent" in media["text/event-stream"]["schema"]["description"]
    for status in ("400", "401", "503"):
        told = operation["responses"][status]["content"]["application/json"]["schema"]
        assert told == {"$ref": "#/components/schemas/AnthropicErrorResponse"}
