"""One client's connection: aiohttp's, with the patience that it lacks, and errors as JSON.

opened ─► head ─► body ─► answer ─► idle ─► head ─► …
          │       │       └ must be read, in each `write_timeout_s` some of it, even once it is over
          │       └ `lmserve.edge.patience`
          └ must be whole within `header_timeout_s` and `MAX_HEAD_BYTES`

A message of a WebSocket must come, in each `message_timeout_s` some of it, and all that come have a
limit together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler, RequestPayloadError

from lmserve.edge import refusal
from lmserve.edge.patience import Pace
from lmserve.edge.slow import logger
from lmserve.edge.socket.arriving import Arriving
from lmserve.errors import EngineUnavailable, LmserveError, TooSlow
from lmserve.protocol.errors import error_body

if TYPE_CHECKING:
    from lmserve.edge.connections import Connections

LINGER_S = 1.0


class ClientConnection(RequestHandler):
    """`Connections` looks at each every so often: that costs a request nothing."""

    def __init__(self, connections: Connections, **kwargs: Any):
        super().__init__(connections, **kwargs)
        self._connections = connections
        self._client: asyncio.Transport | None = None  # aiohttp's is gone before all was sent
        self._head_since: float | None = None  # a head is awaited: this one began then
        self._head_bytes = 0
        self._reading: Pace | None = None  # the client lags
        self._arriving: Arriving | None = None  # on a WebSocket
        self._coming = Pace(0.0, 0)  # of its message that is not whole

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._client = self.transport
        self._head_since = self._loop.time()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._connections.closed(self)
        self._forget_message()
        self._client = None
        super().connection_lost(exc)

    def set_parser(self, parser: Any, data_received_cb: Callable[[], None] | None = None) -> None:
        """It is a WebSocket from here on."""
        self._arriving = Arriving()
        self._message_came(self._message_tail)
        super().set_parser(parser, data_received_cb)

    def data_received(self, data: bytes) -> None:
        if self._close or self._force_close:  # it ends: nothing is looked at any more
            return
        if self._arriving is not None:
            self._message_came(data)
        num_requests = self._request_count
        super().data_received(data)
        if self._request_count != num_requests:
            self._head_since, self._head_bytes = None, 0
            if not self._paused:
                self._reading = None  # what was answered before is behind it
            self._connections.busy(self)
            self._end_broken_body()
        elif data and self.awaits_request:
            self._connections.busy(self)
            self._head_bytes += len(data)
            if self._head_since is None:
                self._head_since = self._loop.time()
            if self._head_bytes > refusal.MAX_HEAD_BYTES:
                self._end(refusal.head_too_large())

    def _end_broken_body(self) -> None:
        """What came in the middle of a body is no next request: the parser gave up. aiohttp would
        leave the handler waiting for the rest."""
        request = self._current_request
        if request is None or request.content.is_eof():
            return
        self._messages.clear()
        self._end_body(request, RequestPayloadError("badly framed"))

    def _end_body(self, request: web.BaseRequest, error: Exception) -> None:
        """What waits for more of it has this instead."""
        self.close()  # after this answer; what comes from now on is not looked at
        request.content.set_exception(error)
        request.content.feed_eof()

    def stop(self) -> None:
        """The server ends. A body that is not whole was not accepted, and is not waited for."""
        request, lingers = self._current_request, not self.awaits_request
        self.close()
        if request is not None and not request.content.is_eof():
            gone = EngineUnavailable("the server is shutting down: ask another one")
            self._end_body(request, gone)
        elif request is None and lingers:  # answered: the rest of its body was being thrown away
            self._loop.call_later(LINGER_S, self._end_linger)

    def _end_linger(self) -> None:
        if self._current_request is None:
            self.force_close()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        finished = await super().finish_response(request, resp, start_time)
        self._connections.idle(self)
        return finished

    @property
    def awaits_request(self) -> bool:
        """No request is here, whole or begun to be answered."""
        if self._waiter is None:  # it is being answered, or none has come at all
            return not self._request_count
        return not self._waiter.done()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._reading = None

    def _message_came(self, data: bytes) -> None:
        arriving, connections = self._arriving, self._connections
        assert arriving is not None
        num_bytes, num_messages = arriving.num_bytes, arriving.num_messages
        arriving.feed(data)
        if not num_bytes or arriving.num_messages != num_messages:
            self._coming = Pace(self._loop.time(), 0)
        more = arriving.num_bytes - num_bytes
        connections.arriving_bytes += more
        # one over the limit by itself is taken when there is no other
        alone = connections.arriving_bytes == arriving.num_bytes
        if more > 0 and connections.arriving_bytes > connections.MAX_ARRIVING_BYTES and not alone:
            self._drop("a WebSocket: too much of messages that are not whole has come")

    def look(self, now: float, header_timeout_s: float, write_timeout_s: float) -> None:
        """Ends the connection of a client that takes too long."""
        if self._lags:
            self._look_at_reading(now, write_timeout_s)
            return
        self._reading = None
        if self._arriving is not None:
            self._look_at_message(now, self._arriving.num_bytes)
        elif self._head_since is not None and self.awaits_request:
            if now - self._head_since >= header_timeout_s:
                self._end_head(header_timeout_s)

    @property
    def _lags(self) -> bool:
        """The client has not read what it should have, and nothing is added to it."""
        if self._paused:
            return True
        client = self._client
        return bool(self.num_unread and client and (client.is_closing() or self.awaits_request))

    def _look_at_reading(self, now: float, timeout_s: float) -> None:
        if self._reading is None:
            self._reading = Pace(now, -self.num_unread)
        elif self._reading.is_too_slow(now, -self.num_unread, timeout_s):
            self._drop(f"a client that read too little in {timeout_s:.0f} s")

    def _look_at_message(self, now: float, num_bytes: int) -> None:
        timeout_s = self._connections.limits.message_timeout_s
        if self._reading_paused:  # by us: nothing could come
            self._coming = Pace(now, num_bytes)
        elif num_bytes and self._coming.is_too_slow(now, num_bytes, timeout_s):
            self._drop("a WebSocket whose message came too slowly")

    def _drop(self, what: str) -> None:
        logger.warning("dropping %s", what)
        self._forget_message()  # now: what others send in this very turn has room again
        if self._client is not None:
            self._client.abort()

    def _forget_message(self) -> None:
        if self._arriving is not None:
            self._connections.arriving_bytes -= self._arriving.num_bytes
            self._arriving = None

    @property
    def num_unread(self) -> int:
        """Bytes that the client has not taken."""
        return 0 if self._client is None else self._client.get_write_buffer_size()

    def _end_head(self, header_timeout_s: float) -> None:
        if not self._head_bytes:  # browsers open connections that they may not need
            self.force_close()
            return
        self._end(
            TooSlow(
                f"the request's head did not come within {header_timeout_s:g} s: send it at once"
            )
        )

    def _end(self, error: LmserveError) -> None:
        """Told, and given a moment to read it: closed with something unread, it would be lost."""
        transport = self.transport
        if transport is None:
            return
        self.close()  # what comes from now on is not looked at
        self._head_since = None
        transport.write(refusal.as_bytes(error))
        if transport.can_write_eof():
            transport.write_eof()
        self._loop.call_later(LINGER_S, transport.close)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Of what no handler tells. Always ends the connection."""
        error = refusal.told(exc, status)
        if error.status >= 500:
            self.log_exception("request from %s failed", request.remote, exc_info=exc)
        else:
            self.logger.info("not HTTP, from %s: %s", request.remote, _first_line(message))
        if request.writer.output_size > 0:
            raise ConnectionError("an answer was begun: there is no place for another")
        response = web.Response(
            status=error.status,
            body=error_body(error),
            headers=refusal.headers_of(error),
            content_type="application/json",
            charset="utf-8",
        )
        response.force_close()
        return response


def _first_line(message: str | None) -> str:
    """Less the request's own bytes, which follow."""
    return (message or "").partition("\n")[0]
