"""What the official client takes each event for."""

from __future__ import annotations

from typing import TypeVar

from openai.types import responses as sdk
from pydantic import BaseModel

TYPES: dict[str, type[BaseModel]] = {
    "response.created": sdk.ResponseCreatedEvent,
    "response.in_progress": sdk.ResponseInProgressEvent,
    "response.output_item.added": sdk.ResponseOutputItemAddedEvent,
    "response.content_part.added": sdk.ResponseContentPartAddedEvent,
    "response.output_text.delta": sdk.ResponseTextDeltaEvent,
    "response.output_text.done": sdk.ResponseTextDoneEvent,
    "response.reasoning_text.delta": sdk.ResponseReasoningTextDeltaEvent,
    "response.reasoning_text.done": sdk.ResponseReasoningTextDoneEvent,
    "response.function_call_arguments.delta": sdk.ResponseFunctionCallArgumentsDeltaEvent,
    "response.function_call_arguments.done": sdk.ResponseFunctionCallArgumentsDoneEvent,
    "response.content_part.done": sdk.ResponseContentPartDoneEvent,
    "response.output_item.done": sdk.ResponseOutputItemDoneEvent,
    "response.completed": sdk.ResponseCompletedEvent,
    "response.incomplete": sdk.ResponseIncompleteEvent,
    "response.failed": sdk.ResponseFailedEvent,
    "response.steer.accepted": sdk.ResponseSteerAcceptedEvent,
    "response.steer.pending": sdk.ResponseSteerPendingEvent,
    "response.steer.failed": sdk.ResponseSteerFailedEvent,
}


Model = TypeVar("Model", bound=BaseModel)


def strictly(told: Model) -> Model:
    """What a client was told, which it takes as it comes, checked against the type it is taken
    for."""
    type(told).model_validate(told.model_dump(warnings="error"), strict=True)
    return told
