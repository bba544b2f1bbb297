"""A connection that changed its protocol (WebSocket): from then on bytes, both ways."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from aiohttp import ClientResponse, web
from aiohttp.base_protocol import BaseProtocol

from lmserve.distributor.headers import to_client
from lmserve.errors import LmserveError


class _Pipe:
    """What aiohttp takes for the parser of the new protocol: hands the bytes to the other side.
    While that lags, this one is not read."""

    def __init__(self, source: BaseProtocol, sink: BaseProtocol, ended: asyncio.Event):
        self._source = source
        self._sink = sink
        self._ended = ended
        self._resumed: asyncio.Task[None] | None = None

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        transport = self._sink.transport
        if transport is None or transport.is_closing():
            self._ended.set()
            return False, b""
        transport.write(data)
        if self._sink.writing_paused and self._resumed is None:
            self._source.pause_reading()
            self._resumed = asyncio.create_task(self._resume())
        return False, b""

    def feed_eof(self) -> None:
        self._ended.set()

    async def _resume(self) -> None:
        try:
            await self._sink._drain_helper()
        except ConnectionError:
            self._ended.set()
        else:
            self._resumed = None
            self._source.resume_reading()

    def close(self) -> None:
        if self._resumed is not None:
            self._resumed.cancel()


class Tunnel:
    """The connection, from when the node said 101 until either side ends it."""

    is_whole = True  # whoever ends it

    def __init__(self, request: web.Request, source: ClientResponse):
        self._request = request
        self._source = source
        headers = to_client(source.headers)
        headers["Connection"] = "Upgrade"
        headers["Upgrade"] = source.headers.get("Upgrade", "")
        self.response = web.StreamResponse(status=101, reason=source.reason, headers=headers)
        self.response.force_close()

    async def copy(self) -> web.StreamResponse:
        await self.response.prepare(self._request)
        connection = self._source.connection
        assert connection is not None and connection.protocol is not None
        client, node = self._request.protocol, connection.protocol
        ended = asyncio.Event()
        pipes = _Pipe(client, node, ended), _Pipe(node, client, ended)
        try:
            client.set_parser(cast("Any", pipes[0]))  # of a parser, only these two methods are used
            node.set_parser(pipes[1], self._source.content)
            await ended.wait()
        finally:
            for pipe in pipes:
                pipe.close()
            self._source.close()
            if self._request.transport is not None:
                self._request.transport.close()
        return self.response

    async def break_off(self, error: LmserveError) -> web.StreamResponse:
        """Bytes of a protocol unknown here: there are no words for it."""
        return self.response
