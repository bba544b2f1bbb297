"""An answer that is kept, as events: the same JSON on every transport.

OpenAI's events have OpenAI's shapes; those named `session.…` are ours.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, UnsetType, field

from lmserve.protocol.logprobs import ChatTokenLogprob
from lmserve.protocol.responses.items import ResponseOutputItem, ResponsePart
from lmserve.protocol.responses.objects import ResponseObject


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
    """An item begins."""

    output_index: int
    item: ResponseOutputItem


class ResponseOutputItemDoneEvent(ResponseEvent, kw_only=True, tag="response.output_item.done"):
    """An item, whole."""

    output_index: int
    item: ResponseOutputItem


class _OfItem(ResponseEvent, kw_only=True, tag="response.event"):
    item_id: str
    output_index: int


class _OfPart(_OfItem, kw_only=True, tag="response.event"):
    content_index: int = 0


class ResponseContentPartAddedEvent(_OfPart, kw_only=True, tag="response.content_part.added"):
    """An item's text begins."""

    part: ResponsePart


class ResponseContentPartDoneEvent(_OfPart, kw_only=True, tag="response.content_part.done"):
    """An item's text, whole."""

    part: ResponsePart


class ResponseTextDeltaEvent(_OfPart, kw_only=True, tag="response.output_text.delta"):
    """More text."""

    delta: str
    logprobs: list[ChatTokenLogprob] = field(default_factory=list)


class ResponseTextDoneEvent(_OfPart, kw_only=True, tag="response.output_text.done"):
    """All of the text."""

    text: str
    logprobs: list[ChatTokenLogprob] = field(default_factory=list)


class ResponseReasoningDeltaEvent(_OfPart, kw_only=True, tag="response.reasoning_text.delta"):
    """More of what the model thinks."""

    delta: str


class ResponseReasoningDoneEvent(_OfPart, kw_only=True, tag="response.reasoning_text.done"):
    """All of what it thought."""

    text: str


class ResponseArgumentsDeltaEvent(
    _OfItem, kw_only=True, tag="response.function_call_arguments.delta"
):
    """More of a call's arguments: a piece of JSON text."""

    delta: str


class ResponseArgumentsDoneEvent(
    _OfItem, kw_only=True, tag="response.function_call_arguments.done"
):
    """All of a call's arguments."""

    arguments: str


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


class ResponseRequiredInput(Struct, kw_only=True):
    """The output of a call, which is still to come."""

    type: Literal["function_call_output"] = "function_call_output"
    call_id: str
    name: str


class ResponseSteerPendingEvent(ResponseEvent, kw_only=True, tag="response.steer.pending"):
    """After the end: what was said goes with the response that brings these outputs. Do not say
    it again."""

    steer: ResponseSteerRef
    reason: Literal["waiting_for_required_input"] = "waiting_for_required_input"
    required_input: list[ResponseRequiredInput]


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
    ResponseReasoningDeltaEvent,
    ResponseReasoningDoneEvent,
    ResponseArgumentsDeltaEvent,
    ResponseArgumentsDoneEvent,
    ResponseContentPartDoneEvent,
    ResponseOutputItemDoneEvent,
    ResponseCompletedEvent,
    ResponseIncompleteEvent,
    ResponseFailedEvent,
    ResponseSteerAcceptedEvent,
    ResponseSteerPendingEvent,
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
