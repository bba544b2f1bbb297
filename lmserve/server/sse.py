"""Streams on their way out: one response, one writer, one write a step."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress

from aiohttp import web

from lmserve.edge.middlewares import bug
from lmserve.errors import EventsGone, LmserveError
from lmserve.protocol.encode import COMMENT, DONE
from lmserve.protocol.errors import error_event
from lmserve.server.keys import SETTINGS
from lmserve.service.streams.stream import Reader, Stream, StreamEvent

HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}

# Given a write that does not wait and says whether to go on; returns when it should not, or when
# there is nothing more of its kind.
Follow = Callable[[Callable[[bytes], bool]], Awaitable[None]]

# Headers not known before the first chunk is.
LateHeaders = Callable[[], Mapping[str, str]]

STREAM_HEADER = "X-Stream-Id"
MAX_WRITE_BYTES = 64 * 1024  # of what waits for a reader: the log is its buffer, no other is


class EventStream:
    """The response, started by its first write. A stream that would be silent for `keep_alive_s`
    says a comment, which may start it; 0: it stays silent. A client that does not read loses its
    connection (`lmserve.edge.connection`), which cancels the handler."""

    def __init__(self, request: web.Request, late: LateHeaders, keep_alive_s: float):
        self._request = request
        self._late = late
        self._response = web.StreamResponse(headers=HEADERS)
        self._chunked = False  # known once started
        self._protocol = request.protocol
        self._transport = request.transport
        self._writing = False  # and waiting for the client
        self._silent = True  # nothing was written since the last look
        self._starting: asyncio.Task[None] | None = None
        self._look_s = keep_alive_s / 2  # two in the time of a silence, which so is over by then
        self._timer: asyncio.TimerHandle | None = None
        if keep_alive_s:
            self._look_later()

    @property
    def started(self) -> bool:
        return self._starting is not None or self._response.prepared

    async def start(self) -> None:
        """Sends the headers. The first write does it too."""
        self._response.headers.update(self._late())
        await self._response.prepare(self._request)
        self._chunked = self._response.headers.get("Transfer-Encoding") == "chunked"

    async def write(self, data: bytes) -> None:
        if self._starting is not None:
            await self._started()
        self._writing = True
        if not self._response.prepared:
            await self.start()
        await self._response.write(data)
        self._writing = self._silent = False

    def write_now(self, data: bytes) -> bool:
        """Writes without waiting; False when the client lags, so that the next write should.
        Only for a started stream that did not lag after its last write.

        The bytes are those that `write` would send. Its layers, made for writes that may wait,
        cost as much as all else that is done for a token."""
        self._silent = False
        transport = self._transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client has left")
        transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)
        return not self._protocol.writing_paused

    @property
    def lags(self) -> bool:
        """Whether the client takes its bytes slower than they come."""
        return self._protocol.writing_paused

    async def end(self) -> web.StreamResponse:
        if self._starting is not None:
            await self._started()
        self._writing = True
        await self._response.write_eof()
        return self._response

    def close(self) -> None:
        """Says no more comments."""
        if self._timer is not None:
            self._timer.cancel()
        if self._starting is not None:
            self._starting.cancel()

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._look_s, self._look)

    def _look(self) -> None:
        if self._silent and not self._writing:
            self._keep_alive()
        self._silent = True
        self._look_later()

    def _keep_alive(self) -> None:
        """Says the comment. What fails here is for the handler to find out."""
        if not self.started:
            self._starting = asyncio.create_task(self._start_early())
        elif self._starting is None or self._starting.done():
            with suppress(ConnectionResetError):
                if not self.lags:
                    self.write_now(COMMENT)

    async def _start_early(self) -> None:
        with suppress(ConnectionResetError):
            await self.start()
            await self._response.write(COMMENT)

    async def _started(self) -> None:
        assert self._starting is not None
        await self._starting
        self._starting = None


def _keep_alive_s(request: web.Request) -> float:
    return request.app[SETTINGS].server.keep_alive_s


def end_event(error: LmserveError) -> bytes:
    """Tells an error as an event, and the end."""
    return error_event(error) + DONE


async def send(
    request: web.Request,
    chunks: AsyncGenerator[bytes, None],
    follow: Follow | None = None,
    *,
    end_with: Callable[[LmserveError], bytes] = end_event,
    late: LateHeaders = dict,
    keep_alive: bool = True,
) -> web.StreamResponse:
    """Sends the chunks, framed as they are; the last of them ends the stream. While the client
    keeps up, `follow` may write what would be the next chunks itself, in the turn that brings
    them.

    What fails before the first chunk is raised, so that it gets its status; what fails later, or
    after a comment, is told in the bytes of `end_with`. `keep_alive` False: these are not
    server-sent events, and know no comments. Cancelled when the client leaves, even while nothing
    is written.
    """
    keep_alive_s = _keep_alive_s(request) if keep_alive else 0.0
    stream = EventStream(request, late, keep_alive_s)
    try:
        async with aclosing(chunks):
            try:
                async for chunk in chunks:
                    await stream.write(chunk)
                    if follow is not None and not stream.lags:
                        await follow(stream.write_now)
            except ConnectionResetError:
                raise
            except Exception as error:
                if not stream.started:
                    raise
                told = error if isinstance(error, LmserveError) else bug(request)
                await stream.write(end_with(told))
        return await stream.end()
    finally:
        stream.close()


# --- streams that are kept ----------------------------------------------------------------


async def send_stream(
    request: web.Request,
    stream: Stream,
    *,
    starting_after: int = -1,
    headers: Mapping[str, str] = {},
) -> web.StreamResponse:
    """Sends the events after that one, then those that come, until the stream ends; its id is in
    a header. Raises InvalidField and EventsGone as `Stream.reading` does, before anything is
    sent; a client that falls behind what is kept is told so in a last event."""
    with stream.reading(starting_after) as reader:
        known = {STREAM_HEADER: stream.id, **headers}
        out = EventStream(request, lambda: known, _keep_alive_s(request))
        try:
            await out.start()
            if request.method != "HEAD":
                await _send_events(reader, out)
            return await out.end()
        finally:
            out.close()


async def _send_events(reader: Reader, out: EventStream) -> None:
    """What waits goes in one write. While the client keeps up, each event is written in the turn
    that appends it."""
    try:
        while not reader.at_end:
            await reader.wait()
            number = reader.next
            events = reader.take(MAX_WRITE_BYTES)
            if events:
                await out.write(b"".join(map(frame, range(number, reader.next), events)))
            if not out.lags and not reader.behind:
                await reader.follow(lambda number, event: out.write_now(frame(number, event)))
    except EventsGone as error:
        await out.write(error_event(error))


def frame(number: int, event: StreamEvent) -> bytes:
    if event.name:
        return b"id: %d\nevent: %b\ndata: %b\n\n" % (number, event.name, event.data)
    return b"id: %d\ndata: %b\n\n" % (number, event.data)
