"""API keys: default deny, whatever the path, the method, the request line and the Host say."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from typing import Any
from urllib.parse import urlsplit

import orjson
import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestClient, TestServer

from lmserve.edge.keyring import OPEN as OPEN_ROUTES
from lmserve.edge.keyring import OWNER, SCOPE, Keyring
from lmserve.server.lifecycle import Server
from lmserve.server.routes.table import TABLE
from lmserve.settings import ServerSettings, Settings

KEY, OTHER = "sk-first.key", "sk-second~key"
CHAT = "/v1/chat/completions"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
OPEN = {("GET", "/health"), ("GET", "/"), ("GET", "/chat"), ("GET", "/web/{name}")}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return dataclasses.replace(
        settings, server=dataclasses.replace(settings.server, api_keys=(KEY, OTHER))
    )


async def is_denied(response: Any) -> dict[str, Any]:
    assert response.status == 401
    assert response.headers["WWW-Authenticate"] == "Bearer"
    body = orjson.loads(await response.read())
    error = body["error"]
    assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
    assert (body["object"], body["code"], body["type"]) == ("error", 401, error["type"])
    assert body["message"] == error["message"]
    return dict(error)


def path_of(route: Any) -> str:
    path = route.path.replace("{name}", "chat.js")
    return "/v1/models/mock" if "{" in path else str(path)


@pytest.mark.parametrize("route", TABLE, ids=lambda route: f"{route.method} {route.path}")
async def test_every_route_asks_for_a_key(client: TestClient, route: Any) -> None:
    response = await client.request(route.method, path_of(route))
    if (route.method, route.path) in OPEN:
        assert response.status == 200
    elif route.error_body is not None:  # in the words of another API
        assert (response.status, response.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert "asks for an API key" in await response.text()
    else:
        await is_denied(response)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/nothing"),
        ("GET", "//v1/models"),
        ("GET", "/v1//models"),
        ("GET", "/health/"),
        ("GET", "/chat/../v1/models"),
        ("GET", "/web/..%2fv1%2fmodels/x"),
        ("GET", CHAT),  # would be 405
        ("POST", "/health"),
        ("DELETE", "/chat"),
        ("OPTIONS", "/v1/models"),
        ("TRACE", "/v1/models"),
        ("PROPFIND", "/v1/models"),
    ],
)
async def test_what_no_route_has_is_denied_too(server: Server, method: str, path: str) -> None:
    head, body = await raw(server, f"{method} {path} HTTP/1.1\r\nHost: x")
    assert head.startswith("HTTP/1.1 401 ")
    assert orjson.loads(body)["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    "head",
    [
        "GET http://127.0.0.1/v1/models HTTP/1.1\r\nHost: 127.0.0.1",
        "GET http://evil.example/v1/models HTTP/1.1\r\nHost: x",
        "GET /v1/models HTTP/1.1\r\nHost: /health",
        "GET /v1/models HTTP/1.1\r\nHost: x/health?",
        "GET /v1/models?/health HTTP/1.1\r\nHost: x",
        "GET /%761/models HTTP/1.1\r\nHost: x",
        "GET /v1/models HTTP/1.1\r\nHost: x\r\nX-Original-URL: /health",
        "GET /v1/models HTTP/1.1\r\nHost: x\r\nX-HTTP-Method-Override: OPTIONS",
        "GET /v1/models HTTP/1.0",
        "CONNECT /v1/models HTTP/1.1\r\nHost: x",
        "OPTIONS * HTTP/1.1\r\nHost: x",
    ],
)
async def test_no_request_line_or_host_gets_around(server: Server, head: str) -> None:
    answer, _ = await raw(server, head)
    assert answer.split()[1] in ("400", "401")


async def raw(server: Server, head: str) -> tuple[str, bytes]:
    """The answer to these bytes: its head and its body."""
    parts = urlsplit(server.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(f"{head}\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    start, _, body = answer.partition(b"\r\n\r\n")
    return start.decode(), body


async def test_head_is_denied_without_a_body(client: TestClient) -> None:
    response = await client.head("/v1/models")
    assert (response.status, await response.read()) == (401, b"")
    assert (await client.head("/health")).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": KEY},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": f"Bearer {KEY}x"},
        {"Authorization": f"Bearer {KEY[:-1]}"},
        {"Authorization": f"Bearer {KEY} {OTHER}"},
        {"Authorization": f"Bearer {KEY},{OTHER}"},
        {"Authorization": f"Bearer {KEY.upper()}"},
        {"Authorization": "Bearer schlüssel"},
        {"X-Api-Key": ""},
        {"X-Api-Key": f"Bearer {KEY}"},
        {"X-Api-Key": "no"},
        {"Cookie": f"key={KEY}"},
    ],
)
async def test_wrong_keys(client: TestClient, fake: Any, headers: dict[str, str]) -> None:
    error = await is_denied(await client.post(CHAT, json=HELLO, headers=headers))
    assert "key" in error["message"]
    assert KEY[:-1] not in error["message"] and "schl" not in error["message"]
    assert fake.submits == []


async def test_bytes_that_are_no_text(server: Server) -> None:
    parts = urlsplit(server.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \xff\xfe\r\n")
    writer.write(b"Connection: close\r\n\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.1 401 ")
    writer.close()


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {KEY}"},
        {"Authorization": f"bearer  {OTHER} "},
        {"x-api-key": OTHER},
        {"Authorization": "Bearer none", "x-api-key": KEY},
    ],
)
async def test_right_keys(client: TestClient, headers: dict[str, str]) -> None:
    assert (await client.post(CHAT, json=HELLO, headers=headers)).status == 200
    assert (await client.get("/nothing", headers=headers)).status == 404
    assert (await client.get(CHAT, headers=headers)).status == 405


async def test_the_owner_is_the_key_and_does_not_tell_it() -> None:
    async def owner(keys: tuple[str, ...], brought: str) -> str:
        seen: list[str] = []

        async def handler(request: web.Request) -> web.Response:
            seen.append(request[OWNER])
            return web.Response()

        app = web.Application(middlewares=[Keyring(keys).guard])
        app[OPEN_ROUTES], app[SCOPE] = set(), {}
        app.router.add_get("/", handler)
        async with TestClient(TestServer(app)) as client:
            assert (await client.get("/", headers={"X-Api-Key": brought})).status == 200
        return seen[0]

    first, second = await owner((KEY, OTHER), KEY), await owner((KEY, OTHER), OTHER)
    assert first != second and first == await owner((KEY,), KEY)  # whatever others there are
    assert KEY not in first and first.isalnum()
    assert await owner((), KEY) == ""


async def test_no_body_is_asked_for_or_read_without_a_key(server: Server, fake: Any) -> None:
    parts = urlsplit(server.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n"
    writer.write(f"{head}Expect: 100-continue\r\n\r\n".encode())
    assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 401 ")  # nothing before it
    writer.close()


async def test_who_has_a_key_is_told_to_go_on(server: Server) -> None:
    parts = urlsplit(server.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    body = orjson.dumps(HELLO)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    head += f"x-api-key: {KEY}\r\nConnection: close\r\nExpect: 100-continue\r\n\r\n"
    writer.write(head.encode())
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(body)
    assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
    writer.close()


async def test_keys_are_in_no_log(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        await client.get("/v1/models", headers={"Authorization": "Bearer sk-wrong-one"})
        await client.get("/v1/models", headers={"Authorization": f"Bearer {KEY}"})
    for secret in ("sk-wrong-one", KEY, OTHER):
        assert secret not in caplog.text


async def test_a_stream_runs_with_a_key(server: Server) -> None:
    async with ClientSession(server.url, headers={"x-api-key": KEY}) as session:
        async with session.post(CHAT, json=HELLO | {"stream": True}) as response:
            assert (await response.read()).endswith(b"data: [DONE]\n\n")


def test_the_open_routes_are_these() -> None:
    socket = {("GET", "/v1/responses")}  # once upgraded: it asks in its first event
    assert {(route.method, route.path) for route in TABLE if route.open} == OPEN | socket
    assert ServerSettings().api_keys == ()
