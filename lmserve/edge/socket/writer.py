"""The one way out of a connection. Nothing is queued here: what cannot be written now waits where
it comes from, a stream's events in its log."""

from __future__ import annotations

import asyncio

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter


class Writer:
    """Writes whole events, each a text frame."""

    def __init__(
        self,
        request: web.Request,
        socket: web.WebSocketResponse,
        stream: AbstractStreamWriter,
    ):
        self._request = request
        self._socket = socket
        self._stream = stream

    def write_now(self, event: bytes) -> bool:
        """Writes without waiting; False when the client lags, so that the next write should wait
        for `drained`."""
        if self._socket.closed:
            raise ConnectionResetError("the client has left")
        self._transport().write(_header(len(event)) + event)
        return not self._request.protocol.writing_paused

    async def write(self, event: bytes) -> None:
        await self.drained()
        self.write_now(event)

    async def drained(self) -> None:
        """Returns when the client has taken what was written; one that does not loses its
        connection (`lmserve.edge.connection`)."""
        while self._request.protocol.writing_paused:
            self._transport()  # of a lost one, `drain` returns at once
            await self._stream.drain()

    def _transport(self) -> asyncio.Transport:
        transport = self._request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client has left")
        return transport


def _header(num_bytes: int) -> bytes:
    """Of an unmasked text frame, final."""
    if num_bytes < 126:
        return bytes((0x81, num_bytes))
    if num_bytes < 2**16:
        return b"\x81\x7e" + num_bytes.to_bytes(2, "big")
    return b"\x81\x7f" + num_bytes.to_bytes(8, "big")
