"""Answers on a connection: begun, shown to their end and beyond, steered, found again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
from aiohttp import web

from lmserve.edge.socket.writer import Writer
from lmserve.errors import (
    AnswerConflict,
    AnswerNotFound,
    LmserveError,
    Overloaded,
    PreviousNotFound,
    RequestError,
)
from lmserve.protocol import socket as wire
from lmserve.protocol import socket_events as told
from lmserve.protocol.responses import events as events
from lmserve.protocol.responses.changes import ResponseUpdate
from lmserve.protocol.responses.objects import ResponseObject
from lmserve.protocol.responses.requests import ResponseCreate
from lmserve.server.idempotency import key_from, named
from lmserve.server.keys import ANSWERS, SESSIONS
from lmserve.server.responses.calls import ResponseCalls
from lmserve.server.routes.streams import find
from lmserve.server.socket.following import Following
from lmserve.server.socket.sockets import SOCKETS
from lmserve.service.answers.answers import Answer
from lmserve.service.answers.records import Record
from lmserve.service.streams.stream import Stream

MAX_LANES_KEPT = 1000  # answers whose lane is known after their end


class Responses:
    """Those of one connection. Answers that are not stored are found on the connection that asked
    for them alone, and go with it."""

    def __init__(self, app: web.Application, owner: str, writer: Writer):
        self._app = app
        self._owner = owner
        self._answers = app[ANSWERS]
        self._calls = ResponseCalls(app[ANSWERS], app[SESSIONS], owner)
        self._writer = writer
        self._following = Following(writer)
        self._own: set[str] = set()  # not stored
        self._lanes: dict[str, str] = {}  # by response, oldest first

    async def begin(self, asked: wire.CreateResponse) -> Answer:
        """Take a reader of its stream before the next await."""
        for param in ("previous_response_id", "regenerate", "continue_"):
            id = getattr(asked, param)
            if id is not None and id.startswith("resp_"):
                await self.check(id, param.rstrip("_"))
        idempotency = None
        if asked.idempotency_key is not None:
            key, body = asked.idempotency_key, _over_http(asked)
            idempotency = await asyncio.to_thread(
                named, key, "/v1/responses", body, "idempotency_key"
            )
        with key_from("idempotency_key"):
            return await self._calls.begin(asked, idempotency=idempotency)

    async def show(self, answer: Answer, stream_id: str | None) -> None:
        """Its events, and then those of the answers that go on from it."""
        if not is_stored(answer.record):
            self._own.add(answer.record.id)
        await self._show(answer.record.id, answer.stream, -1, answer, stream_id)

    async def resume(self, asked: wire.Resume, event_id: str | None) -> None:
        id, after = asked.response_id, asked.starting_after
        after = -1 if after is None else after
        if id.startswith("resp_"):
            await self.check(id, "response_id")
        stream = await find(self._app, self._owner, id)
        stream.check_cursor(after)
        resumed = told.Resumed(response_id=id, starting_after=after, last=stream.next - 1)
        await self._writer.write(
            told.result_event("session.resume", event_id, msgspec.json.encode(resumed))
        )
        await self._show(id, stream, after, self._answers.running(self._owner, id), asked.stream_id)

    async def steer(self, given: dict[str, Any], convert: Callable[[], wire.SteerResponse]) -> None:
        """That it was taken on is told in the answer's stream; that it was not, here."""
        named = given.get("previous_response_id")
        id = named if isinstance(named, str) else ""
        try:
            asked = convert()
            id = asked.previous_response_id
            await self.check(id, "previous_response_id")
            shown = self._following.shows(id)
            steered = await self._calls.steer(id, asked)
        except (RequestError, Overloaded) as error:
            steer = events.ResponseSteerReturned(previous_response_id=id, input=given.get("input"))
            event = events.ResponseSteerFailedEvent(
                sequence_number=await self._last(id), steer=steer, error=_steer_error(error)
            )
            await self._say(id, event)
            return
        if not shown:
            ref = events.ResponseSteerRef(id=steered.id, previous_response_id=id)
            number = await self._last(id)
            await self._say(
                id, events.ResponseSteerAcceptedEvent(sequence_number=number, steer=ref)
            )

    async def cancel(self, id: str) -> ResponseObject:
        await self.check(id, "response_id")
        return await self._calls.cancel(id)

    async def update(self, id: str, changes: ResponseUpdate) -> ResponseObject:
        await self.check(id, "response_id")
        return await self._calls.update(id, changes)

    def running_in(self, session: str) -> str:
        """The answer that runs there. Raises AnswerNotFound."""
        running = self._answers.of_session(self._owner, session)
        if not running:
            raise AnswerNotFound(
                f"session is {session[:70]!r}: nothing is being answered there", param="session"
            )
        return running[-1].stream.id

    async def check(self, id: str, param: str) -> None:
        """Raises AnswerNotFound for one that is another connection's own."""
        if id in self._own:
            return
        try:
            record = await self._answers.record(self._owner, id)
        except AnswerNotFound as error:
            raise _not_found(error.message, param) from None
        if not is_stored(record):
            raise _not_found(
                f"{param} is {id[:70]!r}, which is not stored: only the connection that made it "
                "can refer to it",
                param,
            )

    def close(self) -> None:
        """Forgets what is not stored, whatever task this is called in."""
        self._app[SOCKETS].forget(self._answers, self._owner, self._own)

    async def _show(
        self, id: str, stream: Stream, after: int, answer: Answer | None, stream_id: str | None
    ) -> None:
        """`answer`: None where it ended long ago."""
        while True:
            self._note(id, stream_id)
            await self._following.follow(stream, after, stream_id)
            successor = None if answer is None else await answer.successor()
            if successor is not None:
                id, stream, answer = successor.record.id, successor.stream, successor
                if not is_stored(successor.record):
                    self._own.add(id)
            elif (known := await self._successor_of(id)) is not None:
                id, answer = known, self._answers.running(self._owner, known)
                stream = await self._answers.stream(self._owner, id)
            else:
                return
            after = -1

    async def _successor_of(self, id: str) -> str | None:
        """As it is kept."""
        try:
            return (await self._answers.record(self._owner, id)).successor
        except AnswerNotFound:
            return None  # another kind of stream, or deleted meanwhile

    def _note(self, id: str, stream_id: str | None) -> None:
        self._lanes.pop(id, None)
        if stream_id is not None:
            self._lanes[id] = stream_id
            if len(self._lanes) > MAX_LANES_KEPT:
                del self._lanes[next(iter(self._lanes))]

    async def _last(self, id: str) -> int:
        """The number of its last event so far, which is the place of what is told here alone."""
        try:
            stream = await self._answers.stream(self._owner, id)
        except LmserveError:
            return 0
        return max(stream.next - 1, 0)

    async def _say(self, id: str, event: events.ResponseEvent) -> None:
        data = msgspec.json.encode(event)
        await self._writer.write(told.on_lane(data, self._lanes.get(id)))


def is_stored(record: Record) -> bool:
    return record.told.get("store") is not False


def _over_http(asked: wire.CreateResponse) -> ResponseCreate:
    """The same, as `POST /v1/responses` would have it."""
    fields = {name: getattr(asked, name) for name in ResponseCreate.__struct_fields__}
    return ResponseCreate(**(fields | {"stream": True}))


def _not_found(message: str, param: str) -> AnswerNotFound:
    kind = PreviousNotFound if param == "previous_response_id" else AnswerNotFound
    return kind(message, param=param)


def _steer_error(error: LmserveError) -> events.ResponseSteerError:
    match error:
        case AnswerNotFound():
            code = "response_not_found"
        case AnswerConflict():
            code = "response_already_completed"
        case Overloaded():
            code = "too_many_pending_steers"
        case _:
            code = "invalid_input"
    return events.ResponseSteerError(code=code, message=error.message)
