"""What the official client takes each event for."""

from __future__ import annotations

from openai.types import responses as sdk
from pydantic import BaseModel

TYPES: dict[str, type[BaseModel]] = {
    "response.created": sdk.ResponseCreatedEvent,
    "response.in_progress": sdk.ResponseInProgressEvent,
    "response.output_item.added": sdk.ResponseOutputItemAddedEvent,
    "response.content_part.added": sdk.ResponseContentPartAddedEvent,
    "response.output_text.delta": sdk.ResponseTextDeltaEvent,
    "response.output_text.done": sdk.ResponseTextDoneEvent,
    "response.content_part.done": sdk.ResponseContentPartDoneEvent,
    "response.output_item.done": sdk.ResponseOutputItemDoneEvent,
    "response.completed": sdk.ResponseCompletedEvent,
    "response.incomplete": sdk.ResponseIncompleteEvent,
    "response.failed": sdk.ResponseFailedEvent,
    "response.steer.accepted": sdk.ResponseSteerAcceptedEvent,
    "response.steer.failed": sdk.ResponseSteerFailedEvent,
}
