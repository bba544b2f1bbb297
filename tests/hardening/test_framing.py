"""Bodies and heads beyond all measure, to a real server with a real engine."""

from __future__ import annotations

import asyncio
import gzip
import re
from typing import Any

import orjson
import pytest

from lmserve.errors import RequestError
from lmserve.protocol.decode import MAX_PARTS, parse_object
from tests.hardening.conftest import told
from tests.hardening.doors import DOORS, USER
from tests.hardening.real import RealServer
from tests.server.pipes import asking

HTTP = [door for door in DOORS if not door.socket]
HUGE = 100 * 2**20
CLOSE = "Connection: close\r\n"


async def exchange(real: RealServer, *parts: bytes) -> bytes:
    """What is answered, once nothing more is taken."""
    reader, writer = await asyncio.open_connection("127.0.0.1", real.port)
    try:
        async with asyncio.timeout(30):
            for part in parts:
                writer.write(part)
                await writer.drain()
    except ConnectionError:
        pass  # it was answered before all had come
    try:
        async with asyncio.timeout(30):
            return await reader.read(2**16)
    except ConnectionError:
        return b""
    finally:
        writer.close()


def head(path: str, *headers: str) -> bytes:
    return "\r\n".join((f"POST {path} HTTP/1.1", "Host: x", *headers, "\r\n")).encode()


async def test_a_hundred_megabytes_announced(real: RealServer) -> None:
    paths = [*{door.path for door in HTTP}, "/v1/files", "/v1/sessions", "/v1/sessions/import"]
    form = "Content-Type: multipart/form-data; boundary=x"

    async def one(path: str) -> None:
        size = f"Content-Length: {HUGE * 5}"
        answer = await exchange(real, head(path, size, form), b"{")
        assert answer.startswith(b"HTTP/1.1 413"), (path, answer[:300])

    await asyncio.gather(*map(one, paths))


async def test_a_hundred_megabytes_in_chunks(real: RealServer) -> None:
    chunk = b"100000\r\n" + b" " * 2**20 + b"\r\n"

    async def one(path: str) -> None:
        sent = [head(path, "Transfer-Encoding: chunked"), *[chunk] * (HUGE // 2**20)]
        answer = await exchange(real, *sent)
        assert not answer or answer.startswith(b"HTTP/1.1 413"), (path, answer[:300])

    await asyncio.gather(*map(one, ("/v1/chat/completions", "/v1/responses", "/v1/sessions")))


HEADS = {
    "a long line": b"GET /" + b"x" * 2**16 + b" HTTP/1.1\r\n\r\n",
    "a long header": head("/v1/completions", "X: " + "x" * 2**16),
    "64 KB of headers": head("/v1/completions", *("X: " + "x" * 640 for _ in range(100))),
    "10000 headers": head("/v1/completions", *(f"X{n}: 1" for n in range(10_000))),
    "a folded header": head("/v1/completions", "X: a", " b"),
    "a space in a name": head("/v1/completions", "X : a"),
    "no name": head("/v1/completions", ": a"),
    "a bare line feed": b"POST /v1/completions HTTP/1.1\nHost: x\nContent-Length: 2\n\n{}",
    "a NUL": head("/v1/completions", "X: a\0b"),
    "another version": b"POST /v1/completions HTTP/9.9\r\nHost: x\r\n\r\n",
    "no version": b"POST /v1/completions\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500) + b"\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "two lengths": head("/v1/completions", "Content-Length: 2", "Content-Length: 3") + b"{}",
    "length and chunks": head("/v1/completions", "Content-Length: 2", "Transfer-Encoding: chunked"),
    "chunks twice": head("/v1/completions", "Transfer-Encoding: chunked, chunked") + b"0\r\n\r\n",
}


async def test_heads_that_are_none(real: RealServer) -> None:
    answers = await asyncio.gather(*(exchange(real, data) for data in HEADS.values()))
    for what, answer in zip(HEADS, answers, strict=True):
        first, _, body = answer.partition(b"\r\n\r\n")
        assert re.match(rb"HTTP/\d\.\d 4", first), (what, answer[:300])
        told(body)


async def ask(real: RealServer, path: str, body: Any, headers: str = "") -> tuple[int, bytes]:
    async with asking(real, path, body, CLOSE + headers) as (reader, _):
        async with asyncio.timeout(30):
            answer = await reader.read()
    return int(answer.split()[1]), answer.partition(b"\r\n\r\n")[2]


async def test_a_bomb_is_not_unpacked(real: RealServer) -> None:
    bomb = gzip.compress(b" " * (HUGE // 10))
    for encoding in ("gzip", "deflate", "br", "zstd"):
        head = f"Content-Encoding: {encoding}\r\n"
        assert (await ask(real, "/v1/completions", bomb, head))[0] == 400


NUM = 2_700_000
MANY = {
    "empty lists": b'{"x":[' + b",".join([b"[]"] * NUM) + b"]}",
    "small objects": b'{"x":[' + b",".join([b'{"a":1}'] * (NUM // 3)) + b"]}",
    "lists after strings": b'{"x":[' + b",".join([b'"{",[]'] * (NUM // 3)) + b"]}",
}


async def test_a_body_of_nothing_but_parts(real: RealServer) -> None:
    """Parsed, it would take thirty times its bytes, and hold up everybody meanwhile."""
    for what, body in MANY.items():
        status, answer = await ask(real, "/v1/completions", body)
        assert status == 400, what
        assert "send fewer of them" in told(answer)[0]


def test_parts_are_counted_outside_of_strings() -> None:
    text = '{["\\' * MAX_PARTS
    assert parse_object(orjson.dumps({"x": text})) == {"x": text}
    most = {"x": [[]] * (MAX_PARTS - 2)}
    assert parse_object(orjson.dumps(most)) == most
    with pytest.raises(RequestError, match="objects and lists"):
        parse_object(orjson.dumps(most | {"y": {}}))


async def test_requests_in_one_go_are_answered_in_order(real: RealServer) -> None:
    """What is in a body is none."""
    within = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
    body = orjson.dumps({"messages": [USER], "max_tokens": 1, "user": within.decode()})
    size = f"Content-Length: {len(body)}"
    chat, bad = (
        head("/v1/chat/completions", size) + body,
        head("/v1/completions", size) + b"x" * len(body),
    )
    last = head("/tokenize", "Content-Length: 16", "Connection: close") + b'{"prompt": "hi"}'
    reader, writer = await asyncio.open_connection("127.0.0.1", real.port)
    writer.write(chat + bad + chat + last)
    async with asyncio.timeout(30):
        answer = await reader.read()
    writer.close()
    statuses = [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [b"200", b"400", b"200", b"200"]
