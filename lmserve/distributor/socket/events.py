"""Events on their way, as far as they are looked into: which node they are for, and what they tell
of what was asked. They are passed on as they came."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
from msgspec import Raw, Struct

from lmserve.distributor.wish import (
    Body,
    Wish,
    fork,
    kept,
    minted,
    new_session,
    wish_for_response,
)

_NONE = Raw(b"")
LANED = ("response.create", "session.resume")  # their answers are shown on a lane


class Event(Body):
    """A client's. Values are not checked."""

    type: Any = None
    event_id: Any = None
    stream_id: Any = None
    session: Raw = _NONE  # its id; the whole of it, where it is imported
    response_id: Any = None
    idempotency_key: Any = None
    api_key: Any = None


class Seen(Struct):
    """A node's."""

    type: Any = None
    event_id: Any = None
    stream_id: Any = None
    status: Any = None  # of an error
    response_id: Any = None
    response: Raw = _NONE
    result: Raw = _NONE
    steer: Raw = _NONE
    data: Raw = _NONE  # of a stream whose events have no names; null: it has ended


class Response(Struct):
    """Of an event of a node's: what was answered, a session, or what was resumed."""

    id: str | None = None
    session: Any = None
    previous_response_id: Any = None
    incomplete_details: Any = None
    starting_after: Any = None
    last: Any = None

    @property
    def is_steered(self) -> bool:
        details = self.incomplete_details
        return isinstance(details, dict) and details.get("reason") == "steered"


def event_of(data: bytes) -> Event:
    """What is wrong with it is a node's to say."""
    try:
        return msgspec.json.decode(data, type=Event)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Event()


def seen_in(data: bytes) -> Seen:
    try:
        return msgspec.json.decode(data, type=Seen)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Seen()


def response_in(data: Raw) -> Response:
    try:
        return msgspec.json.decode(data, type=Response)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Response()


def text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def wish_of_event(event: Event, api_key: str) -> Wish:
    """Without a session: any node's."""
    model = text(event.model)
    match event.type:
        case "response.create":
            key = text(event.idempotency_key)
            return wish_for_response(model, api_key, event, key)
        case "session.create" | "session.import":
            return new_session(model, api_key, event)
        case "response.steer":
            return minted(event.previous_response_id, api_key) or Wish()
        case _:
            return _wish_of_call(event, api_key)


def _wish_of_call(event: Event, api_key: str) -> Wish:
    for id in (event.response_id, event.previous_response_id):
        wish = minted(id, api_key)
        if wish is not None:
            return wish
    session = _session(event.session)
    if not session:
        return Wish()
    wish = kept(session, api_key)
    if event.type == "session.fork":
        return fork(wish, api_key, event.id)
    return replace(wish, ends_session=event.type == "session.delete")


def _session(given: Raw) -> str | None:
    try:
        return msgspec.json.decode(given or b"null", type=str | None)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
