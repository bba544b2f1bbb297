"""HTTP as bytes over a bare socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import orjson

GET = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
ENOUGH_S = 30.0  # for what must happen, however busy the machine is


@dataclass
class Bare:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> tuple[int, dict[str, str], Any]:
        """The next one, as status, headers and JSON."""
        async with asyncio.timeout(ENOUGH_S):
            head = await self.reader.readuntil(b"\r\n\r\n")
            line, *lines = head.decode().strip().split("\r\n")
            pairs = (each.split(": ", 1) for each in lines)
            headers = {name.lower(): value for name, value in pairs}
            body = await self.reader.readexactly(int(headers["content-length"]))
        return int(line.split()[1]), headers, orjson.loads(body)

    async def ended(self) -> bytes:
        """What comes until the other side ends it."""
        data = b""
        with suppress(ConnectionResetError):  # closed before it had read all of ours
            async with asyncio.timeout(ENOUGH_S):
                while piece := await self.reader.read(2**16):
                    data += piece
        return data

    async def refused(self, status: int, code: str | None = None) -> str:
        """An error that is like all others, and the last answer; gives its message."""
        got, headers, body = await self.answer()
        assert got == status, body
        assert headers["content-type"].startswith("application/json")
        assert headers["server"] == "lmserve"
        assert len(headers["x-request-id"]) == 32 and headers["connection"] == "close"
        assert body["code"] == status
        if code is not None:
            assert body["error"]["code"] == code
        assert await self.ended() == b""
        message: str = body["error"]["message"]
        return message


@asynccontextmanager
async def opened(url: str, **kwargs: Any) -> AsyncIterator[Bare]:
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, **kwargs)
    try:
        yield Bare(reader, writer)
    finally:
        writer.transport.abort()


FRAMES = {  # what is wrong: the bytes, and the status
    "no HTTP": (b"\x00\x01\x02hello\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 40, 400),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "a bad version": (b"GET / HTTP/9.9\r\nHost: x\r\n\r\n", 400),
    "a bad header": (b"GET / HTTP/1.1\r\nHost: x\r\n<script>: 1\r\n\r\n", 400),
    "a bad length": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n", 400),
    "two lengths": (
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        400,
    ),
    "a long line": (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431),
    "a long header": (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"x" * 64_000 + b"\r\n\r\n", 431),
    "10,000 headers": (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 10_000 + b"\r\n", 431),
}
