"""Bodies that are not what they say, or not JSON as it is read here, on every route."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import zlib
from io import BytesIO
from typing import Any

import aiohttp

from tests.hardening.conftest import told
from tests.hardening.doors import DOORS, Door
from tests.hardening.real import RealServer

HTTP = [door for door in DOORS if not door.socket]


def broken(body: dict[str, Any]) -> dict[str, bytes]:
    good = json.dumps(body).encode()
    first = json.dumps(next(iter(body)))
    return {
        "nothing": b"",
        "spaces": b" \n",
        "a list": b"[]",
        "null": b"null",
        "a number": b"1e999",
        "cut": good[:-1],
        "two": good + good,
        "a BOM": b"\xef\xbb\xbf" + good,
        "UTF-16": good.decode().encode("utf-16"),
        "not UTF-8": good[:-1] + b',"user":"\xff"}',
        "half a pair": good[:-1] + b',"user":"\\ud800"}',
        "a control character": good[:-1] + b',"user":"\x00"}',
        "NaN": good[:-1] + b',"temperature":NaN}',
        "Infinity": good[:-1] + b',"temperature":-Infinity}',
        "a key twice": good[:-1] + b"," + first.encode() + b":null}",
        "a comment": good + b"// x",
        "single quotes": good.replace(b'"', b"'"),
        "deep lists": good[:-1] + b',"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "deep objects": good[:-1] + b',"x":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001,
        "deep and open": b"[" * 100_000,
        "a long number": good[:-1] + b',"x":-' + b"9" * 100_000 + b".e}",
    }


async def test_what_is_not_json_is_refused(client: aiohttp.ClientSession) -> None:
    for door in HTTP:
        for what, body in broken(door.body).items():
            async with client.post(door.path, data=BytesIO(body)) as response:
                answer = await response.read()
                assert response.status == 400, (door.id, what, answer[:300])
                told(answer)


async def test_fields_that_nobody_knows_are_nobodys_matter(client: aiohttp.ClientSession) -> None:
    more = b',"\\u0000":1,"":[],"__class__":{"a":[]},"x":1e300,"y":%b}' % (b"9" * 4000)
    for door in HTTP:
        body = json.dumps(door.body).encode()[:-1] + more
        async with client.post(door.path, data=BytesIO(body)) as response:
            assert response.status in (200, 400), (door.id, await response.read())


async def test_nothing_is_unpacked(real: RealServer) -> None:
    bomb = gzip.compress(b" " * 10**6)
    for door in HTTP:
        good = json.dumps(door.body).encode()
        for encoding, body in (
            ("gzip", gzip.compress(good)),
            ("gzip", bomb),
            ("deflate", zlib.compress(good)),
            ("br", good),
            ("gzip, gzip", good),
        ):
            sent = await raw(real, door, body, f"Content-Encoding: {encoding}", len(body))
            assert sent.startswith(b"HTTP/1.1 400"), (door.id, encoding, sent[:300])


FRAMES = (
    ("Content-Length: -1", b"{}"),
    ("Content-Length: x", b"{}"),
    ("Content-Length: 99999999999999999999", b"{}"),
    ("Content-Length: 2\r\nContent-Length: 3", b"{}"),
    ("Content-Length: 2\r\nTransfer-Encoding: chunked", b"0\r\n\r\n"),
    ("Transfer-Encoding: chunked", b"zz\r\n{}\r\n0\r\n\r\n"),
    ("Transfer-Encoding: chunked", b"-1\r\n{}\r\n0\r\n\r\n"),
    ("Transfer-Encoding: chunked", b"ffffffffffffffffff\r\n{}\r\n"),
    ("Transfer-Encoding: gzip", b"{}"),
    ("X: " + "x" * 70_000, b"{}"),
)


async def test_bodies_framed_badly(real: RealServer) -> None:
    for header, body in FRAMES:
        sent = await raw(real, HTTP[0], body, header)
        assert re.match(rb"HTTP/1\.[01] 4", sent), (header[:60], sent[:300])


ENDLESS = (
    ("Transfer-Encoding: chunked", b'2\r\n{"\r\n'),
    ("Content-Length: 100", b'{"'),
    ("Content-Length: 100", b""),
)


async def test_bodies_that_never_end_hold_nothing(real: RealServer) -> None:
    """Once their clients go; those who stay are given up after a while (tests/server)."""
    for door in HTTP:
        for header, body in ENDLESS:
            reader, writer = await opened(real, door, body, header)
            writer.close()
            assert (await reader.read())[:12] in (b"", b"HTTP/1.1 400")


async def raw(
    real: RealServer, door: Door, body: bytes, header: str, length: int | None = None
) -> bytes:
    """What is answered to these bytes, up to the end of the connection."""
    if length is not None:
        header = f"{header}\r\nContent-Length: {length}"
    reader, writer = await opened(real, door, body, header)
    try:
        async with asyncio.timeout(10):
            return await reader.read(4096)
    finally:
        writer.close()


async def opened(
    real: RealServer, door: Door, body: bytes, header: str
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", real.port)
    writer.write(f"POST {door.path} HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\n".encode() + body)
    return reader, writer
