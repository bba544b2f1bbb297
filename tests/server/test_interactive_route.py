"""POST /v1/chat/interactive over the application, without a session."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient
from pytest_aiohttp import AiohttpClient

from lmserve.messages import unpack_ids
from lmserve.server.app import build_app
from lmserve.settings import Settings

GOLDEN = Path(__file__).parent.parent / "golden"
URL = "/v1/chat/interactive"
KEYS = ["text", "tokens", "input_tokens", "history_tokens", "finish_reason"]
PROMPT_TOKENS = 21  # of "hi" in the mock's template
ZEROS = {"text": "", "tokens": 0, "input_tokens": 0, "history_tokens": 0, "finish_reason": "stop"}


def golden(name: str) -> bytes:
    return (GOLDEN / name).read_bytes()


def lines(stream: bytes) -> list[dict[str, Any]]:
    assert stream.endswith(b"\n") and b"\n\n" not in stream
    read = [orjson.loads(line) for line in stream.splitlines()]
    assert all(list(line) == KEYS for line in read)
    return read


async def one(response: ClientResponse, *, stream: bool) -> dict[str, Any]:
    """The only object of an answer, streamed or not."""
    assert response.status == 200
    if not stream:
        assert response.content_type == "application/json"
        answer: dict[str, Any] = await response.json()
        assert list(answer) == KEYS
        return answer
    assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    (line,) = lines(await response.read())
    return line


async def test_an_answer(client: TestClient, fake: Any) -> None:
    fake.will_say("Hel", "lo", finish="length")
    response = await client.post(URL, json={"prompt": "hi"})
    assert response.headers["Content-Type"] == "application/json"
    assert await response.read() == (
        b'{"text":"Hello","tokens":5,"input_tokens":21,"history_tokens":0,"finish_reason":"length"}'
    )
    assert "X-Session-Id" not in response.headers
    assert response.headers["X-Cached-Tokens"] == "0"
    assert len(unpack_ids(fake.submits[0].token_ids)) == PROMPT_TOKENS


@pytest.mark.parametrize(
    ("fields", "transcript"),
    [
        ({}, "interactive.jsonl"),
        ({"request_output_len": 3}, "interactive_length.jsonl"),
        ({"stop": "lo"}, "interactive_stop.jsonl"),
    ],
)
async def test_a_stream_to_the_byte(
    client: TestClient, fake: Any, fields: dict[str, Any], transcript: str
) -> None:
    fake.will_say("Hel", "lo", ' "ü"\n')
    response = await client.post(URL, json={"prompt": "hi", "stream": True} | fields)
    assert response.status == 200
    assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert response.headers["X-Cached-Tokens"] == "0"
    assert await response.read() == await asyncio.to_thread(golden, transcript)


async def test_nothing_said_is_one_line(client: TestClient, fake: Any) -> None:
    fake.will_say()
    response = await client.post(URL, json={"prompt": "hi", "stream": True})
    assert await response.read() == await asyncio.to_thread(golden, "interactive_empty.jsonl")


@pytest.mark.parametrize("said", [(), ("Hel",)])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_is_told_in_the_answer(
    client: TestClient, fake: Any, stream: bool, said: tuple[str, ...]
) -> None:
    fake.will_fail("out of luck", *said)
    response = await client.post(URL, json={"prompt": "hi", "stream": stream})
    assert response.status == 200
    if stream and said:
        assert await response.read() == await asyncio.to_thread(golden, "interactive_error.jsonl")
        return
    assert await one(response, stream=stream) == {
        "text": "internal error happened: out of luck",
        "tokens": 0,
        "input_tokens": PROMPT_TOKENS,
        "history_tokens": 0,
        "finish_reason": "error",
    }


async def test_a_dying_engine(client: TestClient, fake: Any) -> None:
    fake.will_hang("Hel")
    response = await client.post(URL, json={"prompt": "hi", "stream": True})
    fake.die()
    last = lines(await response.read())[-1]
    assert last["finish_reason"] == "error" and "process died" in last["text"]
    refused = await client.post(URL, json={"prompt": "hi", "stream": True})
    assert (refused.status, refused.headers["Retry-After"]) == (503, "5")
    fake.resume()
    fake.will_say("back")
    assert (await client.post(URL, json={"prompt": "hi"})).status == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("repeats", "counted"), [(2_000, 10_019), (40_000, None)])
async def test_a_prompt_that_does_not_fit(
    client: TestClient, fake: Any, stream: bool, repeats: int, counted: int | None
) -> None:
    """The longer one is refused before it is tokenised: what it has at least is told."""
    response = await client.post(URL, json={"prompt": "hello" * repeats, "stream": stream})
    answer = await one(response, stream=stream)
    if counted is None:
        assert answer["input_tokens"] > 8192
    else:
        assert answer["input_tokens"] == counted
    assert answer | {"input_tokens": 0} == ZEROS | {"finish_reason": "length"}
    assert fake.submits == []


async def test_explicit_budgets_are_cut_to_what_fits(client: TestClient, fake: Any) -> None:
    for asked in (10**9, None):
        fake.will_say("x")
        body = {"prompt": "hi", "request_output_len": asked}
        assert (await client.post(URL, json=body)).status == 200
    assert {submit.sampling.max_tokens for submit in fake.submits} == {8192 - PROMPT_TOKENS}


async def test_the_defaults_of_the_page_reach_the_engine(client: TestClient, fake: Any) -> None:
    fake.will_say("x")
    await client.post(URL, json={"prompt": "hi", "kwargs": {}, "top_p": None})
    sampling = fake.submits[0].sampling
    assert (sampling.top_p, sampling.top_k, sampling.temperature) == (0.8, 40, 0.8)
    assert (sampling.repetition_penalty, sampling.min_p, sampling.ignore_eos) == (1.0, 0.0, False)


async def test_sampling_reaches_the_engine(client: TestClient, fake: Any) -> None:
    fields = {
        "temperature": 0,
        "top_k": 0,
        "top_p": 1,
        "min_p": 0.5,
        "repetition_penalty": 1.25,
        "seed": 3,
        "request_output_len": 7,
        "min_new_tokens": 2,
        "ignore_eos": True,
    }
    fake.will_say("x")
    await client.post(URL, json={"prompt": "hi"} | fields)
    sampling = fake.submits[0].sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.0, 0, 1.0)
    assert (sampling.min_p, sampling.repetition_penalty, sampling.seed) == (0.5, 1.25, 3)
    assert (sampling.max_tokens, sampling.min_tokens, sampling.ignore_eos) == (7, 2, True)


async def test_special_tokens_are_shown_where_asked_for(client: TestClient, fake: Any) -> None:
    for skip, text in ((True, "ab"), (False, "a<|endoftext|>b")):
        fake.will_say("a", [258], "b")
        body = {"prompt": "hi", "skip_special_tokens": skip}
        assert (await (await client.post(URL, json=body)).json())["text"] == text


async def test_a_history_is_rendered_whole(client: TestClient, fake: Any) -> None:
    history = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    fake.will_say("x")
    fake.will_say("x")
    await client.post(URL, json={"prompt": history})
    await client.post("/v1/chat/completions", json={"messages": history})
    interactive, chat = fake.submits
    assert interactive.token_ids == chat.token_ids


@pytest.mark.parametrize("cap", ["completion", "python"])
async def test_a_string_is_gone_on_with_under_another_cap(
    aiohttp_client: AiohttpClient, settings: Settings, fake: Any, cap: Any
) -> None:
    settings = replace(settings, server=replace(settings.server, cap=cap))
    client = await aiohttp_client(build_app(settings, fake))
    fake.will_say("x").will_say("y")
    answer = await (await client.post(URL, json={"prompt": "hi"})).json()
    assert answer["input_tokens"] == 2
    history = [{"role": "user", "content": "hi"}]
    answer = await (await client.post(URL, json={"prompt": history})).json()
    assert answer["input_tokens"] == PROMPT_TOKENS


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": "", "request_output_len": 0, "interactive_mode": True}, "prompt"),
        ({"prompt": [{"role": "user", "content": [{"type": "x"}]}]}, "prompt[0].content[0].type"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": 10**6}, "top_k"),
        ({"temperature": 2.01}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"min_p": 2}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"request_output_len": -1}, "request_output_len"),
        ({"request_output_len": 0}, "request_output_len"),
        ({"min_new_tokens": -1}, "min_new_tokens"),
        ({"min_new_tokens": 9, "request_output_len": 5}, "min_new_tokens"),
        ({"min_new_tokens": 8190}, "min_new_tokens"),
        ({"stop": [""]}, "stop[0]"),
        ({"session_id": -2}, "session_id"),
        ({"session_id": "1"}, "session_id"),
        ({"cancel": True}, "session_id"),
        ({"image_url": "http://x/y.png"}, "image_url"),
        ({"adapter_name": "lora"}, "adapter_name"),
        ({"seed": 2**63}, "seed"),
    ],
)
async def test_bad_input(client: TestClient, fake: Any, fields: dict[str, Any], param: str) -> None:
    for stream in (False, True):
        response = await client.post(URL, json={"prompt": "hi", "stream": stream} | fields)
        assert response.status == 400
        body = await response.json()
        assert body["error"]["param"] == body["param"] == param
        assert param in body["message"]
        assert (body["object"], body["code"]) == ("error", 400)
    assert fake.submits == []


async def test_what_the_template_refuses_is_the_prompt(
    aiohttp_client: AiohttpClient, settings: Settings, fake: Any
) -> None:
    client = await aiohttp_client(build_app(settings, fake))
    assert fake.info is not None
    template = "{{ raise_exception('roles must alternate') }}"
    fake.info = type(fake.info)(
        **{name: getattr(fake.info, name) for name in fake.info.__struct_fields__}
        | {"chat_template": template}
    )
    response = await client.post(URL, json={"prompt": "hi"})
    assert response.status == 400
    body = await response.json()
    assert body["param"] == "prompt" and "roles must alternate" in body["message"]


async def test_ending_what_is_no_session(client: TestClient, fake: Any) -> None:
    for stream in (False, True):
        body = {"prompt": "", "request_output_len": 0, "stream": stream}
        assert await one(await client.post(URL, json=body), stream=False) == ZEROS
    assert fake.submits == []


@pytest.mark.parametrize("stream", [False, True])
async def test_the_prompt_tokens_reused_are_told(
    client: TestClient, fake: Any, stream: bool
) -> None:
    fake.will_say("Hel", "lo")
    fake._scripts[-1][0].num_cached_tokens = 7
    response = await client.post(URL, json={"prompt": "hi", "stream": stream})
    assert response.headers["X-Cached-Tokens"] == "7"


async def test_the_document_says_what_comes(client: TestClient) -> None:
    document = await (await client.get("/openapi.json")).json()
    operation = document["paths"][URL]["post"]
    assert operation["operationId"] == "chat_interactive_v1"
    assert operation["requestBody"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/GenerateRequest"
    }
    stream = operation["responses"]["200"]["content"]["text/event-stream"]["schema"]
    assert "no `data:`" in stream["description"]
    assert stream["contentSchema"] == {"$ref": "#/components/schemas/GenerateResponse"}
    fields = document["components"]["schemas"]["GenerateRequest"]["properties"]
    assert (fields["top_p"]["default"], fields["top_k"]["default"]) == (0.8, 40)
