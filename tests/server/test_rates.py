"""What a client is told of its API key's limits, on every route."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from aiohttp.test_utils import TestClient
from pytest_aiohttp import AiohttpClient

from lmserve.server.app import build_app
from lmserve.settings import LimitSettings, Settings
from tests.server.conftest import WatchedEngine

KEY, OTHER = {"Authorization": "Bearer one"}, {"Authorization": "Bearer two"}
CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
CALLS = [
    (CHAT, HELLO),
    (CHAT, HELLO | {"stream": True}),
    ("/v1/completions", {"prompt": "hi", "max_tokens": 4}),
    ("/v1/responses", {"input": "hi", "max_output_tokens": 4}),
    ("/v1/messages", HELLO),
    ("/v1/embeddings", {"input": "hi"}),
    ("/v1/encode", {"input": "hi"}),
]


@pytest.fixture
async def limited(
    aiohttp_client: AiohttpClient, settings: Settings, fake: WatchedEngine
) -> TestClient:
    server = replace(settings.server, api_keys=("one", "two"))
    limits = LimitSettings(key_requests_per_minute=2, key_tokens_per_minute=100_000)
    return await aiohttp_client(build_app(replace(settings, server=server, limits=limits), fake))


@pytest.mark.parametrize(
    ("url", "param"), [("/v1/completions", "prompt"), ("/v1/embeddings", "input")]
)
async def test_prompts_that_never_fit_together(
    aiohttp_client: AiohttpClient, settings: Settings, fake: WatchedEngine, url: str, param: str
) -> None:
    server = replace(settings.server, api_keys=("one",), max_queued_tokens=80)
    client = await aiohttp_client(build_app(replace(settings, server=server), fake))
    response = await client.post(url, json={param: ["x" * 10] * 8}, headers=KEY)
    error = (await response.json())["error"]
    assert (response.status, error["param"]) == (400, param), error
    assert "more than 70 tokens" in error["message"]
    assert "max_queued_tokens" in error["message"]
    response = await client.post(url, json={param: ["x" * 10] * 7}, headers=KEY)
    assert response.status == 200


@pytest.mark.parametrize(("url", "body"), CALLS)
async def test_every_route_counts_and_says_so(
    limited: TestClient, url: str, body: dict[str, Any]
) -> None:
    left = []
    for _ in range(2):
        response = await limited.post(url, json=body, headers=KEY)
        await response.read()
        assert response.status == 200
        assert response.headers["x-ratelimit-limit-requests"] == "2"
        left.append(int(response.headers["x-ratelimit-remaining-requests"]))
    assert left == [1, 0]
    response = await limited.post(url, json=body, headers=KEY)
    assert response.status == 429
    assert "key_requests_per_minute" in await response.text()
    assert 1 <= int(response.headers["Retry-After"]) <= 30
    assert response.headers["x-ratelimit-reset-requests"].endswith("s")
    assert int(response.headers["x-ratelimit-remaining-tokens"]) <= 100_000
    response = await limited.post(url, json=body, headers=OTHER)
    assert response.status == 200


async def test_a_websocket_counts_too(limited: TestClient) -> None:
    event = {"type": "response.create", "input": "hi", "max_output_tokens": 4}
    async with limited.ws_connect("/v1/responses", headers=KEY) as socket:
        said: list[dict[str, Any]] = []
        for _ in range(3):
            await socket.send_json(event)
            while not said or said[-1]["type"] not in ("response.incomplete", "error"):
                said.append(await socket.receive_json(timeout=20))
            last = said.pop()
            said.clear()
        assert last["type"] == "error"
        assert last["error"]["code"] == "rate_limit_exceeded"


async def test_without_limits_nothing_is_said(client: TestClient) -> None:
    response = await client.post(CHAT, json=HELLO)
    assert not [name for name in response.headers if name.startswith("x-ratelimit")]
