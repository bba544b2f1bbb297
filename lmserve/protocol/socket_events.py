"""Events of the WebSocket that the server sends and that are not of an answer: those are the ones
that server-sent events have, `response_events`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from lmserve.errors import LmserveError
from lmserve.protocol.errors import error_detail


class Authenticated(Struct, kw_only=True):
    """The key is known: go on."""

    type: Literal["session.authenticated"] = "session.authenticated"
    event_id: str | UnsetType = UNSET


class Resumed(Struct, kw_only=True):
    """The events that follow are these."""

    response_id: str
    starting_after: int
    last: Annotated[
        int, Meta(description="The stream's last event so far: what was missed ends with it.")
    ]


class StreamEvent(Struct, kw_only=True):
    """An event of a stream whose own events have neither type nor number: a chunk of
    `/v1/chat/completions`, say."""

    type: Literal["stream.event"] = "stream.event"
    stream_id: str | UnsetType = UNSET
    response_id: Annotated[str, Meta(description="The stream's id.")]
    sequence_number: int
    data: Annotated[
        dict[str, Any] | None, Meta(description="The chunk; null: `[DONE]`, the stream has ended.")
    ]


class SocketErrorDetail(Struct, kw_only=True):
    """What is wrong, as the call over HTTP would say it."""

    message: Annotated[str, Meta(description="What is wrong and what to do.")]
    type: str
    param: Annotated[str | None, Meta(description="The field at fault.")]
    code: str | None
    headers: Annotated[
        dict[str, str] | UnsetType, Meta(description="`Retry-After` with 429, 503 and 504.")
    ] = UNSET


class SocketError(Struct, kw_only=True):
    """What a client sent could not be done. The connection goes on, unless it is closed next."""

    type: Literal["error"] = "error"
    stream_id: Annotated[str | UnsetType, Meta(description="The lane it was asked on.")] = UNSET
    status: Annotated[int, Meta(description="What it would be over HTTP.")]
    error: SocketErrorDetail
    event_id: Annotated[str | UnsetType, Meta(description="The event it answers.")] = UNSET


class ResultEvent(Struct, kw_only=True):
    """What was asked for is done. `type` is that of the client's event, with `.done`."""

    type: str
    event_id: str | UnsetType = UNSET
    result: Annotated[msgspec.Raw, Meta(description="What the call over HTTP answers.")]


def authenticated_event(event_id: str | None) -> bytes:
    return msgspec.json.encode(Authenticated(event_id=UNSET if event_id is None else event_id))


def result_event(type: str, event_id: str | None, result: bytes) -> bytes:
    return msgspec.json.encode(
        ResultEvent(
            type=f"{type}.done",
            event_id=UNSET if event_id is None else event_id,
            result=msgspec.Raw(result),
        )
    )


def error_event(
    error: LmserveError, *, event_id: str | None = None, stream_id: str | None = None
) -> bytes:
    detail = error_detail(error)
    retry_after_s = getattr(error, "retry_after_s", None)
    return msgspec.json.encode(
        SocketError(
            stream_id=UNSET if stream_id is None else stream_id,
            status=error.status,
            error=SocketErrorDetail(
                message=detail.message,
                type=detail.type,
                param=detail.param,
                code=detail.code,
                headers=UNSET if retry_after_s is None else {"Retry-After": str(retry_after_s)},
            ),
            event_id=UNSET if event_id is None else event_id,
        )
    )


def on_lane(data: bytes, stream_id: str | None) -> bytes:
    """An event of an answer as its lane shows it."""
    if stream_id is None:
        return data
    return b'{"stream_id":"%b",%b' % (stream_id.encode(), data[1:])


def wrapped(data: bytes, number: int, response_id: str, stream_id: str | None) -> bytes:
    """An event of a stream whose events have no names."""
    raw = msgspec.Raw(b"null" if data == b"[DONE]" else data)
    event = {"type": "stream.event", "response_id": response_id, "sequence_number": number}
    return on_lane(msgspec.json.encode(event | {"data": raw}), stream_id)
