"""Clients that leave, through the production entry.

aiohttp's own test server cancels handlers by itself, the production runner does so only because
`lmserve.server.lifecycle` says so: these tests go through it.
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from typing import Any

import orjson
import pytest

from lmserve.bridge.assets import FIRST_WORD_ID
from lmserve.server.lifecycle import Server, running_server
from tests.server.pipes import asking, leave

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize("rudely", [False, True])
@pytest.mark.parametrize("path", ["chat/completions", "completions"])
@pytest.mark.parametrize("stream", [False, True])
async def test_before_the_first_token(
    server: Server, fake: Any, path: str, stream: bool, rudely: bool
) -> None:
    fake.will_hang()
    body = (CHAT if path.startswith("chat") else {"prompt": "hi"}) | {"stream": stream}
    async with asking(server, f"/v1/{path}", body) as (_, writer):
        await fake.submitted.wait()
        leave(writer, rudely=rudely)
        await fake.aborted.wait()
    assert fake.aborts == [fake.submits[0].rid]


@pytest.mark.parametrize("rudely", [False, True])
@pytest.mark.parametrize("path", ["chat/completions", "completions"])
async def test_mid_stream(server: Server, fake: Any, path: str, rudely: bool) -> None:
    fake.will_hang("Hel")
    body = (CHAT if path.startswith("chat") else {"prompt": "hi"}) | {"stream": True}
    async with asking(server, f"/v1/{path}", body) as (reader, writer):
        await reader.readuntil(b"Hel")
        leave(writer, rudely=rudely)
        await fake.aborted.wait()
    assert fake.aborts == [fake.submits[0].rid]


async def test_while_it_talks(server: Server, fake: Any) -> None:
    """The engine never stops by itself, so only the lost client can end this."""
    body = CHAT | {"stream": True, "max_tokens": 8000}
    async with asking(server, "/v1/chat/completions", body) as (reader, writer):
        await reader.readuntil(b"delta")
        leave(writer, rudely=True)
        await fake.aborted.wait()
    assert len(fake.aborts) == 1


async def test_every_prompt_of_a_call_ends(server: Server, fake: Any) -> None:
    for _ in range(3):
        fake.will_hang("a")
    body = {"prompt": ["x", "y", "z"], "stream": True}
    async with asking(server, "/v1/completions", body) as (reader, writer):
        seen = b""
        while not all(b'"index":%d' % index in seen for index in range(3)):
            seen += await reader.read(65536)
        leave(writer, rudely=True)
        await fake.aborted.wait()
    await server.service.drain(10.0)
    assert sorted(fake.aborts) == [submit.rid for submit in fake.submits]


async def test_others_go_on(server: Server, fake: Any) -> None:
    fake.will_hang("gone").will_hang("stays")
    async with (
        asking(server, "/v1/chat/completions", CHAT | {"stream": True}) as (first, leaving),
        asking(server, "/v1/chat/completions", CHAT | {"stream": True}) as (second, _),
    ):
        heads = await asyncio.gather(first.readuntil(b"null}]}"), second.readuntil(b"null}]}"))
        assert all(b"200 OK" in head for head in heads)
        leave(leaving, rudely=True)
        await fake.aborted.wait()
        assert len(fake.aborts) == 1
        assert server.service.inflight == 1


async def test_a_half_sent_body_runs_nothing(server: Server, fake: Any) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{")
    await writer.drain()
    writer.transport.abort()
    async with asking(server, "/v1/completions", {"prompt": "hi", "max_tokens": 1}) as (reader, _):
        assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
    assert len(fake.submits) == 1


async def test_a_client_that_reads_nothing_is_dropped(settings: Any, fake: Any) -> None:
    patience = replace(settings.server, write_timeout_s=0.2)
    fake = type(fake)(replace(settings.engine, session_len=10**8))
    fake.will_hang(*[[FIRST_WORD_ID] * 4000] * 500)  # more than any socket buffer holds
    async with running_server(replace(settings, server=patience), fake) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.socket() as lazy:
            lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            lazy.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(lazy, (host, int(port)))
            body = orjson.dumps(CHAT | {"stream": True, "max_tokens": 10**7})
            await loop.sock_sendall(
                lazy,
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
                % len(body)
                + body,
            )
            await fake.aborted.wait()
    assert fake.aborts == [fake.submits[0].rid]
