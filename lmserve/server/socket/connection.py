"""One connection: what comes is read in order and told apart; what is to be done is done beside.

reader ─► event ─┬─ lanes: answers, one at a time each, shown as they are made
                 ├─ calls: sessions, in order each
                 └─ an error event, and the connection goes on
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from aiohttp import WSMsgType, web

from lmserve.edge.middlewares import bug
from lmserve.edge.socket.writer import Writer
from lmserve.errors import InvalidField, LmserveError, Overloaded, RequestError
from lmserve.protocol import socket as wire
from lmserve.protocol import socket_events as told
from lmserve.protocol.decode import convert, parse_object
from lmserve.server.body import OFF_LOOP_BYTES
from lmserve.server.keys import ANSWERS, METRICS, SESSIONS
from lmserve.server.session_calls import SessionCalls
from lmserve.server.socket.calls import CALLS, Callee, done
from lmserve.server.socket.drafting import Drafting
from lmserve.server.socket.jobs import Jobs
from lmserve.server.socket.responses import Responses
from lmserve.server.socket.sockets import SOCKETS

MAX_LANES = 32  # at work at once
MAX_LANE_WAITING = 8  # creates, while a lane answers
MAX_CALLS = 64  # sessions that calls are about, at once
MAX_CALLS_WAITING = 64  # for one session

ENDS = (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR)

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Incoming:
    """An event as it came. Its bytes count among those held until it is done or under way."""

    num_bytes: int
    parsed: dict[str, Any]
    asked: Any = None  # of the kind that its type says
    unknown: Sequence[str] = ()  # names of its fields
    wrong: RequestError | None = None  # why there is no `asked`
    type: str = ""
    event_id: str | None = None
    stream_id: str | None = None


class Connection:
    """`serve` returns when the client has left; what it had going on here ends with it. Answers
    go on."""

    def __init__(
        self,
        request: web.Request,
        owner: str,
        socket: web.WebSocketResponse[bool],
        writer: Writer,
        count: Callable[[int], None],
    ):
        app = request.app
        self._request = request
        self._owner = owner
        self._socket = socket
        self._writer = writer
        self._count = count
        self._metrics = app[METRICS]
        self._responses = Responses(app, owner, writer)
        self._drafting = Drafting(app, owner, self._responses, writer)
        sessions = SessionCalls(app[SESSIONS], app[ANSWERS], owner)
        self._callee = Callee(sessions, self._responses, self._drafting)
        self._lanes = Jobs("lane", max_keys=MAX_LANES, max_waiting=MAX_LANE_WAITING)
        self._calls = Jobs("session", max_keys=MAX_CALLS, max_waiting=MAX_CALLS_WAITING)

    async def serve(self) -> None:
        self._request.app[SOCKETS].serves(self._socket, self._owner, self._lanes.settled)
        try:
            while (message := await self._socket.receive()).type not in ENDS:
                await self._take(message.type, message.data)
                await asyncio.sleep(0)  # the turn of others, however much has come already
        except ConnectionResetError:
            pass  # it was dropped, or left while it was told something
        finally:
            self._count = lambda _: None  # all that was counted is given back by now
            self._lanes.close()
            self._calls.close()
            self._drafting.close()
            self._responses.close()

    async def _take(self, kind: WSMsgType, data: bytes) -> None:
        """Never waits for what an event asks; for the client to read its errors, perhaps."""
        try:
            incoming = await self._read(kind, data)
        except LmserveError as error:
            await self._tell(error, None)
            return
        try:
            self._start(incoming)
        except Exception as error:
            self._release(incoming)
            await self._tell(error, incoming)

    async def _read(self, kind: WSMsgType, data: bytes) -> Incoming:
        if kind is not WSMsgType.TEXT:
            raise RequestError("a binary frame came: send each event as JSON in a text frame")
        if len(data) > OFF_LOOP_BYTES:
            incoming = await asyncio.to_thread(_decode, data)
        else:
            incoming = _decode(data)
        try:
            self._count(incoming.num_bytes)
        except Overloaded:
            self._metrics.rejected("bytes")
            raise
        return incoming

    def _start(self, incoming: Incoming) -> None:
        """Puts it where it belongs. Raises RequestError, Overloaded."""
        name, incoming.event_id = _text(incoming, "type"), _text(incoming, "event_id")
        stream_id = _text(incoming, "stream_id")
        wire.check_stream_id(stream_id)
        incoming.stream_id = stream_id
        if name is None:
            raise InvalidField("type is required: it names the event", param="type")
        self._metrics.socket_events[name if name in EVENTS else "other"] += 1
        start = EVENTS.get(name)
        if start is None:
            raise InvalidField(
                f"type is {name[:64]!r}: send one of {', '.join(sorted(EVENTS))}", param="type"
            )
        incoming.type = name
        start(self, incoming)

    # --- one of these for each event --------------------------------------------------

    def _on_authenticate(self, incoming: Incoming) -> None:
        """Its key is known already, or none is asked for."""
        self._asked(incoming)

        async def work() -> None:
            await self._writer.write(told.authenticated_event(incoming.event_id))

        self._calls.put(object(), lambda: self._guarded(incoming, work))

    def _on_call(self, incoming: Incoming) -> None:
        call = CALLS[incoming.type]
        asked = self._asked(incoming)

        async def work() -> None:
            result = await done(call, self._callee, asked)
            self._release(incoming)
            event = told.result_event(incoming.type, incoming.event_id, result)
            await self._writer.write(event)

        self._calls.put(call.key(asked), lambda: self._guarded(incoming, work))

    def _on_create(self, incoming: Incoming) -> None:
        asked: wire.CreateResponse = self._asked(incoming)

        async def work() -> None:
            answer = await self._responses.begin(asked)
            self._release(incoming)
            await self._responses.show(answer, incoming.stream_id)

        self._lanes.put(incoming.stream_id, lambda: self._guarded(incoming, work))

    def _on_resume(self, incoming: Incoming) -> None:
        asked: wire.Resume = self._asked(incoming)

        async def work() -> None:
            await self._responses.resume(asked, incoming.event_id)

        self._lanes.put(incoming.stream_id, lambda: self._guarded(incoming, work))

    def _on_steer(self, incoming: Incoming) -> None:
        parsed = incoming.parsed

        async def work() -> None:
            await self._responses.steer(parsed, lambda: self._asked(incoming))

        key = ("steer", str(parsed.get("previous_response_id")))
        self._calls.put(key, lambda: self._guarded(incoming, work))

    # --- what they share --------------------------------------------------------------

    def _asked(self, incoming: Incoming) -> Any:
        """Raises RequestError."""
        if incoming.wrong is not None:
            raise incoming.wrong
        for name in incoming.unknown:
            if self._metrics.unknown_field(name):
                logger.warning("ignoring the unknown field %r", name[:64])
        return incoming.asked

    async def _guarded(self, incoming: Incoming, work: Callable[[], Awaitable[None]]) -> None:
        """Every event is answered, by an error where it cannot be done."""
        try:
            await work()
        except ConnectionResetError:
            pass  # the reader hears of it too
        except Exception as error:
            with contextlib.suppress(ConnectionResetError):
                await self._tell(error, incoming)
        finally:
            self._release(incoming)

    async def _tell(self, error: Exception, incoming: Incoming | None) -> None:
        known = error if isinstance(error, LmserveError) else bug(self._request)
        event_id = None if incoming is None else incoming.event_id
        stream_id = None if incoming is None else incoming.stream_id
        event = told.error_event(known, event_id=event_id, stream_id=stream_id)
        await self._writer.write(event)

    def _release(self, incoming: Incoming) -> None:
        self._count(-incoming.num_bytes)
        incoming.num_bytes = 0


def _decode(data: bytes) -> Incoming:
    """Raises RequestError where it is no event at all."""
    incoming = Incoming(len(data), parse_object(data, "the event"))
    name = incoming.parsed.get("type")
    kind = KINDS.get(name) if isinstance(name, str) else None
    if kind is not None:
        try:
            incoming.asked, incoming.unknown = convert(incoming.parsed, kind)
        except RequestError as error:
            incoming.wrong = error
    return incoming


def _text(incoming: Incoming, name: str) -> str | None:
    value = incoming.parsed.get(name)
    if value is not None and not isinstance(value, str):
        raise InvalidField(f"{name} must be a string", param=name)
    return value


EVENTS: dict[str, Callable[[Connection, Incoming], None]] = {
    "session.authenticate": Connection._on_authenticate,
    "response.create": Connection._on_create,
    "response.steer": Connection._on_steer,
    "session.resume": Connection._on_resume,
    **dict.fromkeys(CALLS, Connection._on_call),
}
KINDS: dict[str, type[msgspec.Struct]] = {
    "session.authenticate": wire.Authenticate,
    "response.create": wire.CreateResponse,
    "response.steer": wire.SteerResponse,
    "session.resume": wire.Resume,
    **{name: call.event for name, call in CALLS.items()},
}
