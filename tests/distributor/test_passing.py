"""What passes through, and how: untouched, at once, both ways, and stopping with its client."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from aiohttp import ClientSession, WSMsgType, WSServerHandshakeError, web
from yarl import URL

from tests.distributor.nodes import CHAT, whole


async def test_a_whole_answer(make_node: Any, make_proxy: Any) -> None:
    node = await make_node()
    proxy = await make_proxy(node.url)
    node.engine.will_say("Hel", "lo")
    status, body = await proxy.chat(model="mock")
    assert status == 200
    assert body["choices"][0]["message"]["content"] == "Hello"
    async with proxy.get("/health") as response:
        assert response.headers.getall("Server") == ["lmserve"]


async def test_a_stream_is_the_bytes_of_the_node(make_node: Any, make_proxy: Any) -> None:
    node = await make_node()
    proxy = await make_proxy(node.url)
    node.engine.will_say("Hel", "lo")
    async with proxy.post("/v1/completions", json={"prompt": "hi", "stream": True}) as response:
        assert response.content_type == "text/event-stream"
        body = await response.read()
    assert body.count(b"data: ") >= 3
    assert body.endswith(b"data: [DONE]\n\n")


async def test_nothing_of_an_answer_is_changed(make_bare: Any, make_proxy: Any) -> None:
    raw = b"\x00\xff\r\ndata:{}\n\n\ndata: [DONE]\x1f\x8b"
    node = await make_bare(
        b"HTTP/1.1 418 Teapot\r\nContent-Type: text/odd\r\nContent-Encoding: gzip\r\n"
        b"X-Own: a\r\nX-Own: b\r\nSet-Cookie: c=d\r\nConnection: close, X-Hop\r\nX-Hop: no\r\n"
        b"Content-Length: %d\r\n\r\n" % len(raw) + raw
    )
    proxy = await make_proxy(node.url)
    async with ClientSession(auto_decompress=False) as session:
        async with session.get(proxy.url + "/any/%2Fpath?a=b%20c&d=%3D") as response:
            assert (response.status, response.reason) == (418, "Teapot")
            assert await response.read() == raw
            assert response.headers.getall("X-Own") == ["a", "b"]
            assert response.headers["Content-Encoding"] == "gzip"
            assert response.headers["Set-Cookie"] == "c=d"
            assert "X-Hop" not in response.headers
            assert "Transfer-Encoding" not in response.headers
    assert node.heads[0].startswith(b"GET /any/%2Fpath?a=b%20c&d=%3D HTTP/1.1\r\n")


async def test_a_phrase_that_cannot_be_passed_on_costs_no_answer(
    make_bare: Any, make_proxy: Any
) -> None:
    node = await make_bare(whole(b"{}", status="418 \x1bTea\0"))
    proxy = await make_proxy(node.url)
    async with proxy.post("/v1/completions", json={}) as response:
        assert (response.status, response.reason) == (418, "I'm a Teapot")


async def test_an_answer_of_unknown_length_ends_for_http_1_0_too(
    make_node: Any, make_proxy: Any
) -> None:
    """There, its end is the end of the connection, whatever the client would like."""
    node = await make_node()
    proxy = await make_proxy(node.url)
    body = orjson.dumps(CHAT | {"stream": True, "max_tokens": 2})
    head = "POST /v1/chat/completions HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: "
    for url in (node.url, proxy.url):
        reader, writer = await asyncio.open_connection("127.0.0.1", URL(url).port)
        writer.write(f"{head}{len(body)}\r\n\r\n".encode() + body)
        async with asyncio.timeout(10):
            assert (await reader.read()).endswith(b"data: [DONE]\n\n")
        writer.close()


async def test_a_body_is_not_asked_for_without_a_key(make_node: Any, make_proxy: Any) -> None:
    node = await make_node()
    proxy = await make_proxy(node.url, api_keys=("k",))
    for key, begin in (("no", b"HTTP/1.1 401 "), ("k", b"HTTP/1.1 100 ")):
        reader, writer = await asyncio.open_connection("127.0.0.1", URL(proxy.url).port)
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
            b"Content-Length: 5\r\nAuthorization: Bearer %b\r\n\r\n" % key.encode()
        )
        assert (await reader.readline()).startswith(begin)
        writer.close()


async def test_what_the_node_is_told(make_bare: Any, make_proxy: Any) -> None:
    node = await make_bare(whole(b"{}"))
    proxy = await make_proxy(node.url)
    headers = {
        "X-Forwarded-For": "10.1.1.1",
        "X-Request-Id": "mine",
        "Authorization": "Bearer abc",
        "Connection": "X-Mine",
        "X-Mine": "1",
        "TE": "trailers",
    }
    async with proxy.post("/anything", data=b"body", headers=headers) as response:
        assert response.headers["X-Request-Id"] == "mine"
    head = node.heads[0].lower()
    assert b"x-forwarded-for: 10.1.1.1, 127.0.0.1\r\n" in head
    assert b"x-forwarded-proto: http\r\n" in head
    assert b"x-forwarded-host: 127.0.0.1:" in head
    assert b"x-request-id: mine\r\n" in head
    assert b"via: 1.1 lmserve-" in head
    assert b"authorization: bearer abc\r\n" in head
    assert b"content-length: 4\r\n" in head
    assert b"x-mine" not in head and b"\r\nte:" not in head
    assert b"\r\nhost: " + node.url.removeprefix("http://").encode() + b"\r\n" in head


async def test_other_methods_and_pages(make_node: Any, make_proxy: Any) -> None:
    node = await make_node()
    proxy = await make_proxy(node.url)
    async with proxy.get("/version") as response:
        assert "version" in await response.json()
    async with proxy.get("/") as response:
        assert response.status == 200
        assert "<html" in (await response.text()).lower()
    async with proxy.session.head("/openapi.json") as response:
        assert response.status == 200
        assert int(response.headers["Content-Length"]) > 1000
    async with proxy.session.put("/v1/completions", data=b"{}") as response:
        assert response.status == 405
        assert (await response.json())["error"]["code"] == "method_not_allowed"


async def test_the_node_says_what_is_wrong_with_a_body(make_node: Any, make_proxy: Any) -> None:
    node = await make_node()
    proxy = await make_proxy(node.url)
    for body in (b"", b"{", b"[1]", b"\xff", b'{"messages": 3, "model": 7}'):
        async with proxy.post("/v1/chat/completions", data=body) as response:
            assert response.status == 400, body
            assert (await response.json())["object"] == "error"


async def test_a_large_body_arrives_and_a_larger_one_does_not(
    make_app: Any, make_proxy: Any
) -> None:
    async def length(request: web.Request) -> web.Response:
        return web.json_response(len(await request.read()))

    app = web.Application(client_max_size=2**26)
    app.router.add_get("/health", length)
    app.router.add_get("/v1/models", one_model)
    app.router.add_post("/length", length)
    proxy = await make_proxy(await make_app(app), max_body_bytes=4 * 2**20)
    async with proxy.post("/length", data=pieces(4 * 2**20)) as response:
        assert await response.json() == 4 * 2**20
    too_long: list[Any] = [io.BytesIO(b"x" * (4 * 2**20 + 1)), pieces(4 * 2**20 + 1)]
    for data in too_long:  # its length told, and found out
        async with proxy.post("/length", data=data) as response:
            assert response.status == 413
            assert (await response.json())["error"]["code"] == "body_too_large"


async def test_bodies_held_together_have_a_limit(make_bare: Any, make_proxy: Any) -> None:
    node = await make_bare(whole(b"{}"))
    proxy = await make_proxy(node.url, max_held_bytes=1000)
    async with proxy.post("/anything", data=b"x" * 1001) as response:
        assert response.status == 429
        assert "Retry-After" in response.headers
    for _ in range(2):  # given back, each time
        async with proxy.post("/anything", data=b"x" * 1000) as response:
            assert response.status == 200


async def test_each_event_is_passed_on_when_it_comes(make_app: Any, make_proxy: Any) -> None:
    queue: asyncio.Queue[bytes] = asyncio.Queue()
    proxy = await make_proxy(await make_app(says(queue)))
    async with proxy.get("/stream") as response:
        for event in (b"data: 1\n\n", b"data: 2\n\n", b"data: 3"):
            queue.put_nowait(event)
            assert await response.content.readany() == event  # and no later one is needed for it
        queue.put_nowait(b"")
        assert await response.content.read() == b""


async def test_a_slow_client_holds_up_its_node_and_nobody_else(
    make_app: Any, make_proxy: Any
) -> None:
    queue: asyncio.Queue[bytes] = asyncio.Queue()
    app = says(queue)
    proxy = await make_proxy(await make_app(app))
    piece = b"x" * 2**20
    for _ in range(64):
        queue.put_nowait(piece)
    queue.put_nowait(b"")
    async with proxy.get("/stream") as response:  # of which nothing is read yet
        await proxy.until(lambda: app[WRITES].stuck)
        assert queue.qsize() > 20  # the rest was never taken out: nothing piles up on the way
        async with proxy.get("/health") as other:
            assert other.status == 200
        assert len(await response.read()) == 64 * 2**20


async def test_a_client_that_reads_nothing_is_dropped(make_app: Any, make_proxy: Any) -> None:
    queue: asyncio.Queue[bytes] = asyncio.Queue()
    app = says(queue)
    proxy = await make_proxy(await make_app(app), write_timeout_s=0.05)
    for _ in range(64):
        queue.put_nowait(b"x" * 2**20)
    async with proxy.get("/stream"):
        await app[WRITES].gone.wait()
    assert proxy.node(next(iter(await nodes_of(proxy)))).unfinished == 0


@pytest.mark.parametrize("rudely", [False, True])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_ends_its_request_at_the_node(
    make_node: Any, make_proxy: Any, stream: bool, rudely: bool
) -> None:
    node = await make_node()
    proxy = await make_proxy(node.url)
    node.engine.will_hang("Hel")
    host, port = proxy.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = orjson.dumps(CHAT | {"stream": stream})
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    if stream:
        await reader.readuntil(b"Hel")
    else:
        await node.engine.submitted.wait()
    if rudely:
        writer.transport.abort()
    else:
        writer.close()
    await node.engine.aborted.wait()
    await proxy.until(lambda: proxy.node(node.url).unfinished == 0)
    assert proxy.node(node.url).alive  # it is not the node's fault


async def test_a_websocket_passes_both_ways(make_app: Any, make_proxy: Any) -> None:
    async def echo(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(protocols=("tea",), max_msg_size=0)
        await socket.prepare(request)
        try:
            await socket.send_str(request.headers["X-Forwarded-For"])
            async for message in socket:
                if message.data == "bye":
                    await socket.close(code=4321, message=b"bye")
                elif message.type is WSMsgType.TEXT:
                    await socket.send_str(message.data)
                else:
                    await socket.send_bytes(message.data)
        finally:
            closed.set()
        return socket

    closed = asyncio.Event()
    app = says(asyncio.Queue())
    app.router.add_get("/ws", echo)
    url = await make_app(app)
    proxy = await make_proxy(url)
    async with proxy.session.ws_connect("/ws", protocols=("tea",), max_msg_size=0) as socket:
        assert socket.protocol == "tea"
        assert await socket.receive_str() == "127.0.0.1"
        await socket.send_str("hello")
        assert await socket.receive_str() == "hello"
        large = b"x" * (8 * 2**20)  # more than any buffer on the way
        sending = asyncio.create_task(socket.send_bytes(large))
        assert await socket.receive_bytes() == large
        await sending
        assert proxy.node(url).unfinished == 1
        await socket.send_str("bye")
        assert (await socket.receive()).type is WSMsgType.CLOSE
        assert socket.close_code == 4321
    await closed.wait()
    await proxy.until(lambda: proxy.node(url).unfinished == 0)
    closed.clear()
    socket = await proxy.session.ws_connect("/ws")
    await socket.receive_str()
    socket._response.close()  # without a word
    await closed.wait()
    await proxy.until(lambda: proxy.node(url).unfinished == 0)


async def test_an_upgrade_that_is_refused(make_node: Any, make_proxy: Any) -> None:
    node = await make_node()
    proxy = await make_proxy(node.url)
    with pytest.raises(WSServerHandshakeError) as caught:
        await proxy.session.ws_connect("/nowhere")
    assert caught.value.status == 404
    headers = {"Connection": "Upgrade", "Upgrade": "h2c"}  # as curl --http2 asks: no need to
    async with proxy.get("/version", headers=headers) as response:
        assert response.status == 200


class Writes:
    """What the streaming application notices of its client."""

    def __init__(self) -> None:
        self.stuck = False  # the last write has waited for a while
        self.gone = asyncio.Event()


WRITES = web.AppKey("writes", Writes)


def says(queue: asyncio.Queue[bytes]) -> web.Application:
    """A node that streams what comes into the queue, at once, until an empty piece."""
    app = web.Application()
    app[WRITES] = writes = Writes()

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        timer = asyncio.get_running_loop().call_later(0, int)
        try:
            while data := await queue.get():
                timer = asyncio.get_running_loop().call_later(0.2, setattr, writes, "stuck", True)
                await response.write(data)
                timer.cancel()
        finally:
            timer.cancel()
            writes.gone.set()
        return response

    async def health(request: web.Request) -> web.Response:
        return web.Response()

    app.router.add_get("/health", health)
    app.router.add_get("/v1/models", one_model)
    app.router.add_get("/stream", stream)
    return app


async def one_model(request: web.Request) -> web.Response:
    return web.json_response({"data": [{"id": "m"}]})


async def pieces(num_bytes: int) -> AsyncIterator[bytes]:
    yield b"x" * (num_bytes // 2)
    yield b"x" * (num_bytes - num_bytes // 2)


async def nodes_of(proxy: Any) -> Any:
    async with proxy.get("/nodes/status") as response:
        return await response.json()
