"""What a connection to a distributor may take: as of a server."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from aiohttp import WSServerHandshakeError

from tests.distributor.nodes import MakeBare, MakeNode, MakeProxy, whole
from tests.server.bare import FRAMES, GET, opened

POST = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"


async def test_what_does_not_come_in_time(make_proxy: MakeProxy) -> None:
    proxy = await make_proxy(header_timeout_s=0.1, body_timeout_s=0.1)
    async with opened(proxy.url) as client:
        client.send(GET[:20])
        await client.refused(408, "request_timeout")
    for post in (POST, POST.replace(b"/v1/completions", b"/nodes/add")):
        async with opened(proxy.url) as client:
            client.send(post + b"{")
            status, _, body = await client.answer()
            assert (status, body["error"]["code"]) == (408, "request_timeout")


async def test_what_is_no_request_is_told_as_json(make_proxy: MakeProxy) -> None:
    proxy = await make_proxy()
    for data, status in FRAMES.values():
        async with opened(proxy.url) as client:
            client.send(data)
            await client.refused(status)


async def test_as_many_connections_as_may_be(make_proxy: MakeProxy) -> None:
    proxy = await make_proxy(max_connections=1)
    async with opened(proxy.url) as first, opened(proxy.url) as second:
        first.send(GET[:10])
        second.send(GET)
        await second.refused(503, "too_many_connections")


async def test_as_many_websockets_as_may_be(make_node: MakeNode, make_proxy: MakeProxy) -> None:
    proxy: Any = await make_proxy((await make_node()).url, max_sockets=1)
    async with proxy.session.ws_connect("/v1/responses"):
        with pytest.raises(WSServerHandshakeError) as caught:
            await proxy.session.ws_connect("/v1/responses")
        assert caught.value.status == 503


async def test_a_client_that_reads_nothing_had_no_answer(
    make_bare: MakeBare, make_proxy: MakeProxy
) -> None:
    """What it took says nothing of the node."""
    node = await make_bare(whole(b"x" * 20_000_000))
    proxy = await make_proxy(node.url, write_timeout_s=0.2)
    known = proxy.node(node.url)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, ("127.0.0.1", int(proxy.url.rsplit(":", 1)[1])))
        await loop.sock_sendall(client, b"GET /any HTTP/1.1\r\nHost: x\r\n\r\n")
        await proxy.until(lambda: any(b"/any" in head for head in node.heads))
        await proxy.until(lambda: not known.unfinished)
    assert not known.latency
    node.answer = whole(b"{}")  # short: nobody has to be in time for it
    async with proxy.get("/any") as response:
        assert await response.read() == b"{}"
    await proxy.until(lambda: len(known.latency) == 1)
