"""Events that clients of the WebSocket `/v1/responses` send. Each is the body of the call over
HTTP, with these fields beside it: `type`, often `session`, and `event_id`, which its answer and its
error repeat.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct

from lmserve.errors import InvalidField
from lmserve.protocol import sessions as wire
from lmserve.protocol.drafts import DraftBody
from lmserve.protocol.responses.changes import ResponseSteer, ResponseUpdate
from lmserve.protocol.responses.requests import ResponseCreate

SUBPROTOCOL = "lmserve"
KEY_SUBPROTOCOL = "lmserve.key."  # and the API key in base64url, without padding

_STREAM_ID = re.compile(r"[A-Za-z0-9_.-]{1,256}")

EventId = Annotated[
    str | None, Meta(description="The client's; what answers the event repeats it.")
]
SessionId = Annotated[str, Meta(description="The session's id.")]
StreamId = Annotated[
    str | None,
    Meta(
        description="The lane: 1 to 256 letters, digits, `_`, `.`, `-`. All events of its answer "
        "carry it; what is asked on one lane is answered in order, lanes go on side by side. "
        "Default: the lane without a name."
    ),
]


def check_stream_id(id: str | None) -> None:
    if id is not None and not _STREAM_ID.fullmatch(id):
        raise InvalidField(
            f"stream_id is {id[:70]!r}: use 1 to 256 letters, digits, '_', '.' or '-'",
            param="stream_id",
        )


class Authenticate(Struct, kw_only=True):
    """The first event of a client that could bring its API key in no header."""

    type: Literal["session.authenticate"]
    event_id: EventId = None
    api_key: str


class Create(wire.SessionCreate, kw_only=True):
    """As `POST /v1/sessions`."""

    type: Literal["session.create"]
    event_id: EventId = None


class List(Struct, kw_only=True):
    """As `GET /v1/sessions`."""

    type: Literal["session.list"]
    event_id: EventId = None
    limit: Annotated[
        int | None, Meta(description=f"At most so many, to {wire.MAX_LIMIT}. Default: 20.")
    ] = None
    after: Annotated[str | None, Meta(description="The session that came last before.")] = None

    def check(self) -> None:
        if self.limit is not None and not 1 <= self.limit <= wire.MAX_LIMIT:
            raise InvalidField(
                f"limit is {self.limit}: it must be a whole number from 1 to {wire.MAX_LIMIT}",
                param="limit",
            )


class Get(Struct, kw_only=True):
    """As `GET /v1/sessions/{id}`."""

    type: Literal["session.get"]
    event_id: EventId = None
    session: SessionId


class Update(wire.SessionUpdate, kw_only=True):
    """As `POST /v1/sessions/{id}`; and, of a running answer, as `POST /v1/responses/{id}`."""

    type: Literal["session.update"]
    event_id: EventId = None
    session: Annotated[
        str | None, Meta(description="The session; without `response_id`, its running answer.")
    ] = None
    response_id: Annotated[str | None, Meta(description="The running answer.")] = None
    max_output_tokens: Annotated[int | None, Meta(description="Of the running answer.")] = None
    temperature: Annotated[float | None, Meta(description="Of the running answer.")] = None
    stop: Annotated[
        str | list[str] | None,
        Meta(description="Of the running answer: in place of those it had; `[]`: none."),
    ] = None

    def of_session(self) -> bool:
        """Whether something of the session is to change."""
        return self.title is not None or self.head is not UNSET

    def of_answer(self) -> ResponseUpdate | None:
        """What of the running answer is to change."""
        if self.max_output_tokens is None and self.temperature is None and self.stop is None:
            return None
        return ResponseUpdate(
            max_output_tokens=self.max_output_tokens, temperature=self.temperature, stop=self.stop
        )

    def check(self) -> None:
        if self.session is None and (self.response_id is None or self.of_session()):
            raise InvalidField("session is required", param="session")
        if not self.of_session() and self.of_answer() is None:
            raise InvalidField(
                "nothing is to change: give title, head, max_output_tokens, temperature or stop"
            )


class Rollback(Struct, kw_only=True):
    """Moves a session's head back. Nothing is deleted."""

    type: Literal["session.rollback"]
    event_id: EventId = None
    session: SessionId
    to: Annotated[str, Meta(description="A message's id, or `root`: before the first message.")]


class Delete(Struct, kw_only=True):
    """As `DELETE /v1/sessions/{id}`. At once: it waits for nothing sent before."""

    type: Literal["session.delete"]
    event_id: EventId = None
    session: SessionId


class Append(wire.SessionAppend, kw_only=True):
    """As `POST /v1/sessions/{id}/messages`."""

    type: Literal["session.append"]
    event_id: EventId = None
    session: SessionId


class Messages(Struct, kw_only=True):
    """As `GET /v1/sessions/{id}/messages`."""

    type: Literal["session.messages"]
    event_id: EventId = None
    session: SessionId
    at: Annotated[
        str | None, Meta(description="The line's last message. Default: the session's head.")
    ] = None
    tree: Annotated[bool | None, Meta(description="All messages, each after its parent.")] = None


class Fork(wire.SessionFork, kw_only=True):
    """As `POST /v1/sessions/{id}/fork`."""

    type: Literal["session.fork"]
    event_id: EventId = None
    session: SessionId


class Export(Struct, kw_only=True):
    """As `GET /v1/sessions/{id}/export`."""

    type: Literal["session.export"]
    event_id: EventId = None
    session: SessionId


class Import(wire.SessionImport, kw_only=True):
    """As `POST /v1/sessions/import`."""

    type: Literal["session.import"]
    event_id: EventId = None


class Cancel(Struct, kw_only=True):
    """Stops an answer, at once. As `POST /v1/sessions/{id}/cancel`, or with `response_id` as
    `POST /v1/responses/{id}/cancel`."""

    type: Literal["session.cancel"]
    event_id: EventId = None
    session: Annotated[str | None, Meta(description="Stop what runs in it.")] = None
    response_id: Annotated[str | None, Meta(description="Stop this answer.")] = None

    def check(self) -> None:
        if (self.session is None) == (self.response_id is None):
            raise InvalidField("give one of session and response_id", param="session")


class Draft(DraftBody, kw_only=True):
    """What is being typed, as `POST /v1/sessions/{id}/draft`. `session.draft.ready` says when all
    of it is run."""

    type: Literal["session.draft"]
    event_id: EventId = None
    session: Annotated[str | None, Meta(description="Where it will be said.")] = None
    previous_response_id: Annotated[
        str | None, Meta(description="Or the response that it will follow.")
    ] = None

    def check(self) -> None:
        if (self.session is None) == (self.previous_response_id is None):
            raise InvalidField("give one of session and previous_response_id", param="session")
        if self.previous_response_id is not None and self.after is not None:
            raise InvalidField("after goes only with session: leave out one of them", param="after")


class CreateResponse(ResponseCreate, kw_only=True):
    """An answer, as `POST /v1/responses`; its events follow, on the lane."""

    type: Literal["response.create"]
    event_id: EventId = None
    stream_id: StreamId = None
    idempotency_key: Annotated[
        str | None,
        Meta(description="As the header `Idempotency-Key`: sent again, it joins that answer."),
    ] = None

    def check(self, *, may_be_silent: bool = False) -> None:
        if self.background:
            raise InvalidField(
                "background is for HTTP: leave it out. An answer goes on for a while without its "
                "connection, and session.resume finds it",
                param="background",
            )
        super().check(may_be_silent=may_be_silent)


class SteerResponse(ResponseSteer, kw_only=True):
    """Something said while the answer is being made: it stops at its next token, and another,
    with the same settings, goes on from there."""

    type: Literal["response.steer"]
    event_id: EventId = None
    previous_response_id: Annotated[str, Meta(description="The answer that is steered.")]


class Resume(Struct, kw_only=True):
    """Sends the events of a stream from some place on, and goes on live: on this connection,
    whatever connection began it."""

    type: Literal["session.resume"]
    event_id: EventId = None
    response_id: Annotated[str, Meta(description="A response's id, or that of any stream.")]
    starting_after: Annotated[
        int | None, Meta(description="The last event that you have. Default: all are sent.")
    ] = None
    stream_id: StreamId = None
