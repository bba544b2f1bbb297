"""Bare connections, and the two ways to leave them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol

import orjson

Pipe = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Listening(Protocol):
    @property
    def url(self) -> str: ...


@asynccontextmanager
async def asking(server: Listening, path: str, body: Any, head: str = "") -> AsyncIterator[Pipe]:
    """A bare connection on which the request was sent; `body` as JSON, unless it is bytes."""
    host, port = server.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    size = f"Content-Length: {len(data)}\r\n"
    writer.write(f"POST {path} HTTP/1.1\r\nHost: {host}\r\n{size}{head}\r\n".encode() + data)
    try:
        yield reader, writer
    finally:
        writer.close()


def leave(writer: asyncio.StreamWriter, *, rudely: bool) -> None:
    if rudely:
        writer.transport.abort()
    else:
        writer.close()
