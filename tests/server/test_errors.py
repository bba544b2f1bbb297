"""Bad input: one clear answer, in both dialects, and nothing lost."""

from __future__ import annotations

import asyncio
import gzip
import io
import logging
from typing import Any

import orjson
import pytest
from aiohttp import ClientSession, ServerDisconnectedError, web
from aiohttp.test_utils import TestClient

from lmserve.edge.listen import bind, url_of, wire_logger
from lmserve.errors import Overloaded
from lmserve.server.keys import BODY_BYTES
from lmserve.server.lifecycle import Server
from lmserve.service.admission import MAX_BODY_BYTES, BodyBytes

CHAT = "/v1/chat/completions"
HELLO: dict[str, Any] = {"model": "mock", "messages": [{"role": "user", "content": "hi"}]}


async def refusal(response: Any, status: int) -> dict[str, Any]:
    """The error, which must be the same in both dialects."""
    assert response.status == status
    assert response.content_type == "application/json"
    body = orjson.loads(await response.read())
    error = body["error"]
    assert body["object"] == "error"
    assert body["code"] == status
    for key in ("message", "type", "param"):
        assert body[key] == error[key]
    assert "\n" not in error["message"]
    assert "Traceback" not in error["message"]
    return dict(error)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": 1e308}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"min_new_tokens": 5, "max_tokens": 2}, "min_new_tokens"),
        ({"messages": ""}, "messages"),
        ({"messages": "x" * 20_000}, "messages"),
        ({"messages": "x" * 900_000}, "messages"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 1e30}, "max_tokens"),
        ({"min_tokens": 9, "max_tokens": 5}, "min_tokens"),
        ({"seed": 2**64 - 1}, "seed"),
        ({"stop": [""]}, "stop"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"stop_token_ids": [2**31]}, "stop_token_ids"),
        ({"messages": []}, "messages"),
        ({"n": 129}, "n"),
        ({"top_logprobs": 1}, "top_logprobs"),
    ],
)
async def test_fields_out_of_range(
    client: TestClient, fake: Any, fields: dict[str, Any], param: str
) -> None:
    error = await refusal(await client.post(CHAT, json=HELLO | fields), 400)
    assert error["param"].startswith(param)
    assert error["type"] == "invalid_request_error"
    assert fake.submits == []


async def test_unknown_model(client: TestClient) -> None:
    error = await refusal(await client.post(CHAT, json=HELLO | {"model": "gpt"}), 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    await refusal(await client.get("/v1/models/a/b"), 404)


async def test_any_content_type_that_parses(client: TestClient, fake: Any) -> None:
    form = "application/x-www-form-urlencoded"  # what curl -d sends
    response = await client.post(CHAT, data=orjson.dumps(HELLO), headers={"Content-Type": form})
    assert response.status == 200


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b"[" * 5000])
async def test_bodies_that_are_no_request(client: TestClient, body: bytes) -> None:
    for url in (CHAT, "/v1/completions"):
        await refusal(await client.post(url, data=body), 400)


async def test_oversize_bodies(client: TestClient, settings: Any) -> None:
    limit = settings.server.max_body_bytes
    error = await refusal(await client.post(CHAT, data=io.BytesIO(b"x" * (limit + 1))), 413)
    assert str(limit) in error["message"]

    async def chunked() -> Any:  # no content length to look at
        for _ in range(limit // 2**20 + 1):
            yield b" " * 2**20

    await refusal(await client.post(CHAT, data=chunked()), 413)


async def test_compressed_bodies_are_not_read(server: Server, fake: Any) -> None:
    """So there is no bomb to defuse."""
    headers = {"Content-Encoding": "gzip"}
    async with ClientSession(server.url) as session:
        for body in (gzip.compress(orjson.dumps(HELLO)), b"not gzip"):
            error = await refusal(await session.post(CHAT, data=body, headers=headers), 400)
            assert "Content-Encoding" in error["message"]
    assert fake.submits == []


@pytest.mark.parametrize("encoding", ["identity", " Identity"])
async def test_identity_is_no_compression(server: Server, fake: Any, encoding: str) -> None:
    async with ClientSession(server.url) as session:
        answer = await session.post(CHAT, json=HELLO, headers={"Content-Encoding": encoding})
        assert answer.status == 200
    assert len(fake.submits) == 1


async def test_bodies_in_flight_are_bounded(client: TestClient, fake: Any) -> None:
    held = client.app[BODY_BYTES]
    with held.counting() as count:
        count(MAX_BODY_BYTES - 10)
        refused = await client.post(CHAT, json=HELLO)
        await refusal(refused, 429)
        assert refused.headers["Retry-After"] == "1"
    assert (await client.post(CHAT, json=HELLO)).status == 200
    assert held.num_bytes == 0
    assert 'admission_rejections_total{model_name="mock",reason="bytes"} 1.0' in (
        await (await client.get("/metrics")).text()
    )


async def test_a_body_over_the_bound_by_itself_is_read() -> None:
    held = BodyBytes(10)
    with held.counting() as count:
        count(8)
        count(8)
        with held.counting() as other, pytest.raises(Overloaded):
            other(1)
    assert held.num_bytes == 0


async def test_large_bodies_are_decoded_too(client: TestClient, fake: Any) -> None:
    body = HELLO | {"foo": "x" * 300_000}
    assert (await client.post(CHAT, json=body)).status == 200
    assert len(fake.submits) == 1


async def test_routes_and_methods(client: TestClient) -> None:
    await refusal(await client.get("/nothing"), 404)
    await refusal(await client.get("/line%0abreak"), 404)
    await refusal(await client.session.get(f"{client.make_url('/')}/v1/models"), 404)
    refused = await client.get(CHAT)
    error = await refusal(refused, 405)
    assert "POST" in error["message"]
    assert refused.headers["Allow"] == "POST, OPTIONS"
    options = await client.options(CHAT)
    assert (options.status, options.headers["Allow"]) == (204, "POST, OPTIONS")
    head = await client.head("/v1/models")
    assert (head.status, await head.read()) == (200, b"")


async def test_no_versions_are_told(client: TestClient) -> None:
    for path in ("/health", "/nothing"):
        assert (await client.get(path)).headers["Server"] == "lmserve"


async def test_request_ids(client: TestClient) -> None:
    given = await client.get("/version", headers={"X-Request-Id": "abc-1"})
    assert given.headers["X-Request-Id"] == "abc-1"
    for bad in ("x" * 129, "a b", "ü"):
        made = await client.get("/nothing", headers={"X-Request-Id": bad})
        assert len(made.headers["X-Request-Id"]) == 32
    stream = await client.post(
        CHAT, json=HELLO | {"stream": True, "max_tokens": 1}, headers={"X-Request-Id": "s"}
    )
    assert stream.headers["X-Request-Id"] == "s"


async def test_a_bug_is_logged_and_not_told(
    client: TestClient, fake: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def submit(*_: Any) -> None:
        raise ZeroDivisionError("the secret")

    monkeypatch.setattr(fake, "submit", submit)
    response = await client.post(CHAT, json=HELLO, headers={"X-Request-Id": "r-1"})
    error = await refusal(response, 500)
    assert "r-1" in error["message"]
    assert "secret" not in error["message"]
    assert "ZeroDivisionError" in caplog.text
    assert "r-1" in caplog.text


async def test_overload_says_when_to_come_back(
    client: TestClient, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def submit(*_: Any) -> None:
        raise Overloaded("full", retry_after_s=7)

    monkeypatch.setattr(fake, "submit", submit)
    response = await client.post(CHAT, json=HELLO)
    error = await refusal(response, 429)
    assert response.headers["Retry-After"] == "7"
    assert error["type"] == "overloaded_error"


async def test_unknown_fields_are_logged_once_and_counted(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        await client.post(CHAT, json=HELLO | {"frobnicate": 1, "max_tokens": 1})
    named = [r for r in caplog.records if "frobnicate" in r.getMessage()]
    assert len(named) == 1
    text = await (await client.get("/metrics")).text()
    assert 'field="frobnicate"' in text


async def test_unknown_fields_are_counted_within_messages_too(client: TestClient) -> None:
    body = HELLO | {"messages": [{"role": "user", "content": "hi", "mood": "good"}]}
    assert (await client.post(CHAT, json=body)).status == 200
    assert 'field="messages.mood"' in await (await client.get("/metrics")).text()


async def test_the_access_log(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "lmserve.access"):
        await client.get("/version", headers={"X-Request-Id": "seen"})
        await asyncio.sleep(0)
    line = next(r.getMessage() for r in caplog.records if r.name == "lmserve.access")
    assert line.startswith("GET /version 200 ")
    assert line.endswith(" seen")


async def test_what_is_no_http_is_one_line_in_the_log(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with caplog.at_level("INFO"):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n")
        answer = await reader.read()
        writer.close()
    assert answer.startswith((b"HTTP/1.0 400", b"HTTP/1.1 400"))
    (record,) = [record for record in caplog.records if record.name == "aiohttp.server"]
    assert record.levelname == "INFO" and record.exc_info is None
    assert "not HTTP" in record.getMessage() and "\n" not in record.getMessage()


async def test_a_client_that_left_fills_no_log(caplog: pytest.LogCaptureFixture) -> None:
    async def answer_late(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()  # seen before the handler is cancelled
        return web.Response()

    app = web.Application()
    app.router.add_get("/", answer_late)
    runner = web.AppRunner(app, logger=wire_logger(), access_log=None)
    await runner.setup()
    with bind("127.0.0.1", 0) as listener:
        await web.SockSite(runner, listener).start()
        async with ClientSession() as session:
            with pytest.raises(ServerDisconnectedError):
                await session.get(url_of(listener))
        await runner.cleanup()
    assert not caplog.records


@pytest.mark.parametrize("expect", ["100-continue", "100-Continue", "miracles"])
async def test_expectations(client: TestClient, expect: str) -> None:
    """Those that wait with their body are told to go on; others are ignored, as they may be."""
    response = await client.post(CHAT, data=orjson.dumps(HELLO), headers={"Expect": expect})
    assert response.status == 200
    await refusal(await client.post(CHAT, data=b"{", headers={"Expect": expect}), 400)
