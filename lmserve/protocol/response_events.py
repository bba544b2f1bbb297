"""An answer that is kept, as events: the same JSON on every transport.

OpenAI's events have OpenAI's shapes; those named `session.…` are ours.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct, UnsetType, field

from lmserve.protocol.response_objects import (
    ResponseObject,
    ResponseOutputMessage,
    ResponseOutputText,
)


class ResponseEvent(Struct, kw_only=True, tag_field="type", tag="response.event"):
    """What each has; `type` is its name."""

    sequence_number: Annotated[int, Meta(description="From 0; a stream's one cursor.")]


class _OfResponse(ResponseEvent, kw_only=True, tag="response.event"):
    response: ResponseObject


class ResponseCreatedEvent(_OfResponse, kw_only=True, tag="response.created"):
    """It is on disk, and being made."""


class ResponseInProgressEvent(_OfResponse, kw_only=True, tag="response.in_progress"):
    """It is being made."""


class ResponseCompletedEvent(_OfResponse, kw_only=True, tag="response.completed"):
    """The end."""


class ResponseIncompleteEvent(_OfResponse, kw_only=True, tag="response.incomplete"):
    """The end, before the model's: `incomplete_details` says why; or it was cancelled."""


class ResponseFailedEvent(_OfResponse, kw_only=True, tag="response.failed"):
    """The end: `error` says why."""


class ResponseOutputItemAddedEvent(ResponseEvent, kw_only=True, tag="response.output_item.added"):
    """The answer's message begins."""

    output_index: int = 0
    item: ResponseOutputMessage


class ResponseOutputItemDoneEvent(ResponseEvent, kw_only=True, tag="response.output_item.done"):
    """The answer's message, whole."""

    output_index: int = 0
    item: ResponseOutputMessage


class _OfPart(ResponseEvent, kw_only=True, tag="response.event"):
    item_id: str
    output_index: int = 0
    content_index: int = 0


class ResponseContentPartAddedEvent(_OfPart, kw_only=True, tag="response.content_part.added"):
    """The answer's text begins."""

    part: ResponseOutputText


class ResponseContentPartDoneEvent(_OfPart, kw_only=True, tag="response.content_part.done"):
    """The answer's text, whole."""

    part: ResponseOutputText


class ResponseTextDeltaEvent(_OfPart, kw_only=True, tag="response.output_text.delta"):
    """More text."""

    delta: str
    logprobs: list[dict[str, Any]] = field(default_factory=list)


class ResponseTextDoneEvent(_OfPart, kw_only=True, tag="response.output_text.done"):
    """All of the text."""

    text: str
    logprobs: list[dict[str, Any]] = field(default_factory=list)


class ResponseSteerRef(Struct, kw_only=True):
    """Something said while an answer was being made."""

    id: str
    previous_response_id: str


class ResponseSteerReturned(Struct, kw_only=True):
    """It could not be said: here it is again."""

    id: Annotated[str | UnsetType, Meta(description="Left out where it was not taken on.")] = (
        msgspec.UNSET
    )
    previous_response_id: str
    input: Annotated[Any, Meta(description="As it was given.")]


class ResponseSteerError(Struct, kw_only=True):
    """Why it could not be said."""

    type: str = "invalid_request_error"
    code: str
    message: str


class ResponseSteerAcceptedEvent(ResponseEvent, kw_only=True, tag="response.steer.accepted"):
    """What was said is on disk, and not applied yet."""

    steer: ResponseSteerRef


class ResponseSteerFailedEvent(ResponseEvent, kw_only=True, tag="response.steer.failed"):
    """What was said cannot be applied."""

    steer: ResponseSteerReturned
    error: ResponseSteerError


class SessionQueuedEvent(ResponseEvent, kw_only=True, tag="session.queued"):
    """It waits."""

    response_id: str
    position: Annotated[int, Meta(description="Requests before it.")]
    estimate_s: Annotated[float | None, Meta(description="Until it runs; null: nobody knows yet.")]


class SessionSteerAppliedEvent(ResponseEvent, kw_only=True, tag="session.steer.applied"):
    """In the successor's stream: what was said is in the conversation now."""

    steer_id: str
    response_id: Annotated[str, Meta(description="That was steered.")]
    successor_id: str
    token_index: Annotated[int, Meta(description="Tokens of that answer that were kept.")]


class SessionChanges(Struct, kw_only=True, omit_defaults=True):
    """Settings of a running answer."""

    max_output_tokens: int | UnsetType = msgspec.UNSET
    temperature: float | UnsetType = msgspec.UNSET
    stop: list[str] | UnsetType = msgspec.UNSET


class SessionUpdatedEvent(ResponseEvent, kw_only=True, tag="session.updated"):
    """Settings were changed in mid-answer."""

    response_id: str
    token_index: Annotated[int, Meta(description="From this token of the answer on.")]
    changes: SessionChanges


RESPONSE_EVENTS: tuple[type[ResponseEvent], ...] = (
    ResponseCreatedEvent,
    ResponseInProgressEvent,
    ResponseOutputItemAddedEvent,
    ResponseContentPartAddedEvent,
    ResponseTextDeltaEvent,
    ResponseTextDoneEvent,
    ResponseContentPartDoneEvent,
    ResponseOutputItemDoneEvent,
    ResponseCompletedEvent,
    ResponseIncompleteEvent,
    ResponseFailedEvent,
    ResponseSteerAcceptedEvent,
    ResponseSteerFailedEvent,
    SessionQueuedEvent,
    SessionSteerAppliedEvent,
    SessionUpdatedEvent,
)


def event_name(kind: type[ResponseEvent]) -> str:
    """Its `type` on the wire."""
    tag = kind.__struct_config__.tag
    assert isinstance(tag, str)
    return tag
