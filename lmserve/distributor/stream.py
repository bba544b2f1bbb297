"""An answer's way from the node to the client: bytes, as they come."""

from __future__ import annotations

import asyncio

from aiohttp import ClientError, ClientResponse, web

from lmserve.distributor.dialects import MESSAGES
from lmserve.distributor.errors import NodeLost
from lmserve.distributor.headers import to_client
from lmserve.distributor.wish import INTERACTIVE, RESPONSES, SESSIONS, STREAMS
from lmserve.edge.middlewares import REQUEST_ID
from lmserve.edge.slow import drop
from lmserve.protocol.anthropic import errors as anthropic_errors
from lmserve.protocol.encode import COMMENT, DONE
from lmserve.protocol.errors import error_event
from lmserve.protocol.interactive import InteractiveEncoder


class NodeBroke(Exception):
    """The node's side of an answer that was begun broke."""


class Answer:
    """The response, begun with the node's status and headers."""

    def __init__(self, request: web.Request, source: ClientResponse, write_timeout_s: float):
        self._request = request
        self._source = source
        self._write_timeout_s = write_timeout_s
        reason = source.reason or ""
        self.response = web.StreamResponse(
            status=source.status,
            reason=reason if reason.isprintable() else None,  # else no answer at all could be sent
            headers=to_client(source.headers),
        )
        self._protocol = request.protocol
        self._chunked = False  # known once begun
        self.is_whole = False  # and the client has it, as far as is known here
        self._last = b""

    async def copy(self) -> web.StreamResponse:
        """Raises NodeBroke when the node is lost in the middle."""
        await self.response.prepare(self._request)
        self._chunked = self.response.headers.get("Transfer-Encoding") == "chunked"
        read = self._source.content.readany
        try:
            while data := await read():
                self._write(data)
                if self._protocol.writing_paused:
                    await self._drain()
        except ConnectionResetError as error:
            if self._client_left():
                return self.response  # to nobody
            raise NodeBroke(str(error)) from None
        except (ClientError, OSError) as error:
            raise NodeBroke(str(error) or type(error).__name__) from None
        await self.response.write_eof()
        self.is_whole = True
        return self.response

    async def break_off(self, error: NodeLost) -> web.StreamResponse:
        """Tells the client, where its stream has words for it; else cuts the connection, which
        an answer cut short must not outlive as whole."""
        last_words = self._last_words(error)
        if last_words is None:
            if self._request.transport is not None:
                self._request.transport.close()
            return self.response
        self._write(last_words)
        self.response.force_close()
        await self.response.write_eof()
        return self.response

    def _write(self, data: bytes) -> None:
        """The bytes that the response's `write` would send, less the cost of its layers, which
        is half of all that is done for a chunk."""
        transport = self._request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client has left")
        transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)
        self._last = data

    async def _drain(self) -> None:
        """Nothing more is read from the node until the client has taken what was written."""
        try:
            async with asyncio.timeout(self._write_timeout_s):
                await self._protocol._drain_helper()
        except TimeoutError:
            drop(self._request, self._write_timeout_s)
            raise ConnectionResetError("the client reads nothing") from None

    def _client_left(self) -> bool:
        transport = self._request.transport
        return transport is None or transport.is_closing()

    def _last_words(self, error: NodeLost) -> bytes | None:
        headers = self.response.headers
        events = headers.get("Content-Type", "").startswith("text/event-stream")
        if not events or "Content-Encoding" in headers or "Content-Length" in headers:
            return None
        if self._request.path == INTERACTIVE:
            begun = self._last and not self._last.endswith(b"\n")
            return b"\n" * bool(begun) + InteractiveEncoder().failed(error) + b"\n"
        begun = self._last and not self._last.endswith((b"\n\n", COMMENT))
        gap = b"\n\n" * bool(begun)
        if self._request.path == MESSAGES:
            return gap + anthropic_errors.error_event(error, self._request[REQUEST_ID])
        if self._request.path.startswith((RESPONSES, STREAMS, SESSIONS)):  # events have names
            return gap + b"event: error\n" + error_event(error)
        return gap + error_event(error) + DONE
