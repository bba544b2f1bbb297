"""What a connection may take, over bare sockets: time, bytes, and how many there are."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import ClientSession, WSServerHandshakeError, web
from aiohttp.web_protocol import RequestHandler

from lmserve.edge import connections as edge
from lmserve.edge.connections import Connections, EdgeLimits, EdgeRunner, EdgeSite
from lmserve.edge.listen import bind, url_of
from lmserve.server import lifecycle
from lmserve.server.lifecycle import Server, running_server
from lmserve.settings import LimitSettings, Settings
from tests.server.bare import ENOUGH_S, FRAMES, GET, opened
from tests.server.conftest import WatchedEngine

LONG_S = 600.0
POST = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"


@pytest.fixture
def limited(settings: Settings, fake: WatchedEngine) -> Any:
    @asynccontextmanager
    async def serve(**limits: Any) -> AsyncIterator[Server]:
        patient = {"header_timeout_s": LONG_S, "body_timeout_s": LONG_S}
        given = replace(settings, limits=LimitSettings(**patient | limits))
        async with running_server(given, fake) as server:
            yield server

    return serve


async def test_a_head_that_does_not_come(limited: Any) -> None:
    async with limited(header_timeout_s=0.1) as server:
        async with opened(server.url) as client:
            client.send(GET[:20])
            assert "did not come within" in await client.refused(408, "request_timeout")
        async with opened(server.url) as client:  # nobody is told who has not said a word
            assert await client.ended() == b""


async def test_a_head_that_comes_byte_by_byte(limited: Any) -> None:
    async with limited(header_timeout_s=0.2) as server, opened(server.url) as client:

        async def drip() -> None:
            for byte in b"GET /health HTTP/1.1\r\nX: " + b"x" * 8000:
                client.send(bytes((byte,)))
                await asyncio.sleep(0.01)

        dripping = asyncio.create_task(drip())
        await client.refused(408)
        dripping.cancel()


async def test_the_next_head_of_a_kept_connection(limited: Any) -> None:
    async with limited(header_timeout_s=0.1) as server, opened(server.url) as client:
        for _ in range(2):
            client.send(GET)
            assert (await client.answer())[0] == 200
            await asyncio.sleep(0.2)  # an idle connection is none that is late
        client.send(GET[:-1])
        await client.refused(408)


async def test_a_body_that_does_not_come(limited: Any) -> None:
    async with limited(body_timeout_s=0.1) as server, opened(server.url) as client:
        client.send(POST + b"{")
        status, headers, body = await client.answer()
        assert status == 408 and "too slowly" in body["message"]


async def test_a_body_that_comes_byte_by_byte(limited: Any) -> None:
    """Never a pause of `body_timeout_s`, and yet an end."""
    async with limited(body_timeout_s=1.0) as server, opened(server.url) as client:
        client.send(POST)

        async def drip() -> None:
            for _ in range(900):
                client.send(b" ")
                await asyncio.sleep(0.05)

        dripping = asyncio.create_task(drip())
        status, _, body = await client.answer()
        dripping.cancel()
        assert status == 408 and body["error"]["code"] == "request_timeout"


@pytest.mark.parametrize("what", FRAMES)
async def test_what_is_no_request_is_told_as_json(server: Server, what: str) -> None:
    data, status = FRAMES[what]
    async with opened(server.url) as client:
        client.send(data)
        message = await client.refused(status)
        assert "xxx" not in message and "script" not in message and "\n" not in message


@pytest.mark.parametrize("later", [b"zz\r\n", b"2\r\n{}XX"])
async def test_a_body_that_breaks_off_is_told_at_once(server: Server, later: bytes) -> None:
    async with opened(server.url) as client:
        head = POST.replace(b"Content-Length: 1000", b"Transfer-Encoding: chunked")
        client.send(head + b"1\r\n{\r\n")
        await asyncio.sleep(0.05)  # the handler waits for more
        client.send(later)
        status, _, body = await client.answer()
        assert status == 400 and "badly framed" in body["message"]
        assert await client.ended() == b""


async def test_a_head_without_end(server: Server) -> None:
    async with opened(server.url) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\n")
        for number in range(40):
            client.send(b"X-%d: %b\r\n" % (number, b"x" * 4000))
        message = await client.refused(431, "headers_too_large")
        assert "head is over" in message


async def test_a_head_without_end_is_told_once(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(server.url) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\n")
        for number in range(60):  # in pieces, of which more come when it was told
            client.send(b"X-%d: %b\r\n" % (number, b"x" * 4000))
            await client.writer.drain()
            await asyncio.sleep(0)
        assert (await client.ended()).count(b"HTTP/1.1 431") == 1
    assert "Traceback" not in caplog.text


async def test_connections_over_the_limit_are_told(limited: Any) -> None:
    async with limited(max_connections=2) as server, AsyncExitStack() as stack:
        first, second = [await stack.enter_async_context(opened(server.url)) for _ in range(2)]
        for client in (first, second):
            client.send(GET[:10])
        await asyncio.sleep(0)
        third = await stack.enter_async_context(opened(server.url))
        third.send(GET)
        status, headers, body = await third.answer()
        assert (status, body["error"]["code"]) == (503, "too_many_connections")
        assert int(headers["retry-after"]) >= 1
        first.send(GET[10:])
        assert (await first.answer())[0] == 200  # and is idle now
        fourth = await stack.enter_async_context(opened(server.url))
        fourth.send(GET)
        assert (await fourth.answer())[0] == 200
        assert await first.ended() == b""  # made room
        second.send(GET[10:])
        assert (await second.answer())[0] == 200


async def test_a_flood_does_not_keep_others_out(limited: Any) -> None:
    async with limited(max_connections=1) as server, AsyncExitStack() as stack:
        only = await stack.enter_async_context(opened(server.url))
        only.send(GET[:10])
        for _ in range(150):  # who never say a word
            await stack.enter_async_context(opened(server.url))
        client = await stack.enter_async_context(opened(server.url))
        client.send(GET)
        await client.refused(503, "too_many_connections")
        only.send(GET[10:])
        assert (await only.answer())[0] == 200


async def test_websockets_over_the_limit_are_told(limited: Any) -> None:
    async with limited(max_sockets=1) as server, ClientSession(server.url) as session:
        async with session.ws_connect("/v1/responses"):
            with pytest.raises(WSServerHandshakeError) as caught:
                await session.ws_connect("/v1/responses")
            assert caught.value.status == 503
            assert caught.value.headers is not None
            assert int(caught.value.headers["Retry-After"]) >= 1
        async with asyncio.timeout(ENOUGH_S):
            while True:  # the first has left
                try:
                    await (await session.ws_connect("/v1/responses")).close()
                    return
                except WSServerHandshakeError:
                    await asyncio.sleep(0.01)


async def test_a_client_that_reads_no_whole_answer(
    settings: Settings, fake: WatchedEngine, caplog: pytest.LogCaptureFixture
) -> None:
    given = replace(settings, server=replace(settings.server, write_timeout_s=0.2))
    async with running_server(given, fake) as server:
        async with reading_nothing(server.url) as client:
            client.send(GET.replace(b"/health", b"/openapi.json") * 30)  # each as long as a book
            with caplog.at_level(logging.INFO, "lmserve.access"):
                async with asyncio.timeout(ENOUGH_S):
                    while "read too little" not in caplog.text:  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
                    while "GET /openapi.json gone" not in caplog.text:  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
        assert caplog.text.count("GET /openapi.json gone") == 1


@asynccontextmanager
async def reading_nothing(url: str) -> AsyncIterator[socket.socket]:
    """A client with next to no room for what it is sent."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        host, port = url.removeprefix("http://").split(":")
        await asyncio.get_running_loop().sock_connect(client, (host, int(port)))
        yield client


@pytest.mark.parametrize("last", [b"", b"Connection: close\r\n", b"X: y"])
async def test_a_client_that_leaves_a_little_unread(
    last: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Less than what pauses the next answer. It is idle then, or its connection should be closed,
    or half of the next head has come."""
    room = asyncio.get_running_loop().create_future()

    async def page(request: web.Request) -> web.Response:
        assert request.transport is not None
        if request.transport.get_write_buffer_size() and not room.done():
            room.set_result(None)
        return web.Response(body=b"x" * 20_000)

    app = web.Application()
    app.router.add_get("/health", page)
    async with listening(app, EdgeLimits(10, LONG_S, 0.2)) as (url, connections):
        async with asyncio.timeout(ENOUGH_S), reading_nothing(url) as client:
            loop = asyncio.get_running_loop()
            while not room.done():
                await loop.sock_sendall(client, GET)
                await asyncio.sleep(0.001)
            await loop.sock_sendall(client, GET[:-2] + last + (b"" if last == b"X: y" else b"\r\n"))
            while connections.open:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert caplog.text.count("read too little") == 1


async def test_half_a_head_behind_a_whole_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge, "KEEP_ALIVE_S", 0.2)
    async with listening(web.Application(), EdgeLimits(10, LONG_S, LONG_S)) as (url, _):
        async with opened(url) as client:
            client.send(GET + GET[:10])
            assert b"404" in await client.ended()


@asynccontextmanager
async def listening(
    app: web.Application, limits: EdgeLimits
) -> AsyncIterator[tuple[str, Connections]]:
    runner = EdgeRunner(app, limits)
    await runner.setup()
    listener = bind("127.0.0.1", 0)
    await EdgeSite(runner, listener, backlog=100).start()
    assert isinstance(runner.server, Connections)
    try:
        yield url_of(listener), runner.server
    finally:
        await runner.cleanup()


@asynccontextmanager
async def few_descriptors(
    soft: int, hard: int, spare: int, warn_every_s: float = LONG_S
) -> AsyncIterator[tuple[str, asyncio.StreamReader, Any]]:
    """Its URL, its log, and what ends it."""
    given = map(str, (soft, hard, spare, warn_every_s))
    command = (sys.executable, "-m", "tests.server.few_descriptors", *given)
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe)
    assert process.stdin and process.stdout and process.stderr
    try:
        async with asyncio.timeout(ENOUGH_S):
            port = int(await process.stdout.readline())

            async def end() -> int:
                process.stdin.close()
                assert process.stdout is not None
                return int(await process.stdout.readline())

            yield f"http://127.0.0.1:{port}", process.stderr, end
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_without_descriptors_it_waits_for_some() -> None:
    """With nothing spared, accepting itself fails: it neither ends the server nor its port."""
    async with few_descriptors(48, 48, 0) as (url, log, end):
        async with AsyncExitStack() as stack:
            for _ in range(60):
                (await stack.enter_async_context(opened(url))).send(GET[:10])
            last = await stack.enter_async_context(opened(url))
            last.send(GET)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await last.reader.read(1)
        async with opened(url) as client:  # there are some again
            client.send(GET)
            assert (await client.answer())[0] == 200
        assert await end() == 48
        told = [line for line in (await log.read()).splitlines() if b"cannot accept" in line]
        assert len(told) == 1  # however often it failed


async def test_what_is_not_warned_of_is_counted() -> None:
    async with few_descriptors(48, 48, 0, 0.1) as (url, log, end):
        async with AsyncExitStack() as stack:
            for _ in range(60):
                (await stack.enter_async_context(opened(url))).send(GET[:10])
            async with asyncio.timeout(ENOUGH_S):
                async for line in log:
                    if re.search(rb"cannot accept .* \(\d+ times", line):
                        break
        assert await end() == 48


async def test_descriptors_are_had_as_far_as_they_go() -> None:
    async with few_descriptors(40, 64, 32) as (url, _, end), AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(opened(url)) for _ in range(33)]
        for client in clients:
            client.send(GET[:10])
        await asyncio.sleep(0)
        clients[-1].send(GET[10:])
        await clients[-1].refused(503, "too_many_connections")
        clients[0].send(GET[10:])
        assert (await clients[0].answer())[0] == 200
        await stack.aclose()
        assert await end() == 64


async def test_a_body_that_is_half_here_at_the_end(
    limited: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was not accepted: its client is told so, and the end does not wait for it."""
    monkeypatch.setattr(lifecycle, "HANDLER_GRACE_S", LONG_S)
    async with AsyncExitStack() as stack:
        async with limited() as server:
            client = await stack.enter_async_context(opened(server.url))
            client.send(POST.replace(b"Host", b"Expect: 100-continue\r\nHost"))
            assert b" 100 " in await client.reader.readuntil(b"\r\n\r\n")  # its body is read
            client.send(b"{")
        assert "shutting down" in await client.refused(503, "engine_unavailable")


async def test_a_body_that_was_refused_and_still_comes_at_the_end(
    limited: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "HANDLER_GRACE_S", LONG_S)
    monkeypatch.setitem(RequestHandler.__init__.__kwdefaults__, "lingering_time", LONG_S)
    async with AsyncExitStack() as stack:
        async with limited() as server:
            client = await stack.enter_async_context(opened(server.url))
            client.send(POST.replace(b"/v1/completions", b"/no/such/route") + b"{")
            assert (await client.answer())[0] == 404
        assert await client.ended() == b""
