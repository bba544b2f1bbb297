"""Streams that say something while there is nothing to say."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest
from aiohttp import ClientResponse, ClientSession
from aiohttp.test_utils import TestClient
from openai import AsyncOpenAI

from lmserve.protocol.encode import COMMENT
from lmserve.server.lifecycle import Server
from lmserve.settings import EngineSettings, ServerSettings, Settings

HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
STREAMS: list[Any] = [
    pytest.param("/v1/chat/completions", HELLO, {}, id="chat"),
    pytest.param("/v1/chat/completions", HELLO | {"n": 2, "logprobs": True}, {}, id="rich"),
    pytest.param("/v1/chat/completions", HELLO, {"X-Resumable": "1"}, id="resumable"),
    pytest.param("/v1/completions", {"prompt": "hi", "stream": True}, {}, id="completions"),
    pytest.param("/generate", {"prompt": "hi", "stream": True}, {}, id="generate"),
    pytest.param("/v1/responses", {"input": "hi", "stream": True}, {}, id="responses"),
    pytest.param("/v1/messages", HELLO | {"model": "mock", "max_tokens": 8}, {}, id="messages"),
]


@pytest.fixture
def settings() -> Settings:
    return Settings(
        server=ServerSettings(
            server_port=0, model_name="mock", drain_timeout_s=0.2, keep_alive_s=0.04
        ),
        engine=EngineSettings(engine="mock"),
    )


async def until_comment(response: ClientResponse) -> bytes:
    """What comes before the next comment."""
    read = b""
    while not read.endswith(COMMENT):
        read += await response.content.readuntil(b"\n")
    return read.removesuffix(COMMENT)


@pytest.mark.parametrize(("url", "body", "headers"), STREAMS)
async def test_a_stream_that_is_silent_says_so(
    client: TestClient, fake: Any, url: str, body: Any, headers: Any
) -> None:
    fake.hang()
    async with client.post(url, json=body, headers=headers) as response:
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        await until_comment(response)
        assert await until_comment(response) == b""
        fake.resume()
        told = await response.read()
        assert b"data: " in told and b'"error":{' not in told


async def test_so_it_does_in_the_middle(client: TestClient, fake: Any) -> None:
    fake.will_hang("Hel")
    async with client.post("/v1/chat/completions", json=HELLO) as response:
        before = await until_comment(response)
        assert before.count(b"data: ") == 2
        assert await until_comment(response) == b""


@pytest.mark.parametrize("headers", [{}, {"X-Resumable": "true"}])
async def test_what_fails_after_a_comment_is_an_event(
    client: TestClient, fake: Any, headers: dict[str, str]
) -> None:
    fake.hang()
    async with client.post("/v1/chat/completions", json=HELLO, headers=headers) as response:
        await until_comment(response)
        fake.die()
        told = (await response.read()).replace(COMMENT, b"").split(b"\n\n")
        failure = told[0].rpartition(b"data: ")[2]
        assert orjson.loads(failure)["error"]["code"] == "engine_died"
        assert told[1:] == [b"data: [DONE]", b""] or told[1].endswith(b"data: [DONE]")


async def test_the_official_client_passes_over_it(server: Server, fake: Any) -> None:
    """After an event with an id, where a blank line of the comment's would be one more event."""
    fake.will_say("Hel", "lo")
    fake.hang()
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as api:
        events = await api.responses.create(model="mock", input="hi", stream=True)
        comments = asyncio.create_task(comments_of(server))
        assert [(await anext(events)).type for _ in range(2)] == [
            "response.created",
            "response.in_progress",
        ]
        await comments
        fake.resume()
        last = [event async for event in events][-1]
    assert last.type == "response.completed" and last.response.output_text == "Hello"


async def comments_of(server: Server) -> None:
    """Some comments of another stream, by which time a stream as old has had its own."""
    async with (
        ClientSession() as http,
        http.post(f"{server.url}/v1/chat/completions", json=HELLO) as response,
    ):
        for _ in range(3):
            await until_comment(response)


async def test_lines_are_no_events(client: TestClient, fake: Any) -> None:
    """What has no comments in its format gets none, however long it is silent."""
    fake.hang()
    lines = asyncio.create_task(
        client.post("/v1/chat/interactive", json={"prompt": "hi", "stream": True})
    )
    ollama = asyncio.create_task(client.post("/api/generate", json={"prompt": "hi"}))
    async with client.post("/v1/chat/completions", json=HELLO) as response:
        for _ in range(3):
            await until_comment(response)
        fake.resume()
        await response.read()
    for told in (await lines, await ollama):
        assert all(orjson.loads(line) for line in (await told.read()).splitlines())


async def test_a_client_that_leaves_before_the_first_token(client: TestClient, fake: Any) -> None:
    fake.hang()
    response = await client.post("/v1/chat/completions", json=HELLO)
    await until_comment(response)
    response.close()
    await asyncio.wait_for(fake.aborted.wait(), 10)
