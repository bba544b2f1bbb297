"""Anthropic's messages as they are streamed. A delta costs one `orjson.dumps` of its text."""

from __future__ import annotations

import msgspec
import orjson
from msgspec import Struct

from lmserve.protocol.anthropic import MessagesResponse, MessagesUsage, StopReason, TextBlock
from lmserve.types import Usage


class MessageStartEvent(Struct, kw_only=True, tag_field="type", tag="message_start"):
    """The message, with nothing in it yet."""

    message: MessagesResponse


class ContentBlockStartEvent(Struct, kw_only=True, tag_field="type", tag="content_block_start"):
    index: int = 0
    content_block: TextBlock


class PingEvent(Struct, kw_only=True, tag_field="type", tag="ping"):
    """Means nothing."""


class TextDeltaBlock(Struct, kw_only=True, tag_field="type", tag="text_delta"):
    text: str


class ContentBlockDeltaEvent(Struct, kw_only=True, tag_field="type", tag="content_block_delta"):
    """More of the text."""

    index: int = 0
    delta: TextDeltaBlock


class ContentBlockStopEvent(Struct, kw_only=True, tag_field="type", tag="content_block_stop"):
    index: int = 0


class MessageDelta(Struct, kw_only=True):
    stop_reason: StopReason
    stop_sequence: str | None


class MessageDeltaEvent(Struct, kw_only=True, tag_field="type", tag="message_delta"):
    """How the message ended."""

    delta: MessageDelta
    usage: MessagesUsage


class MessageStopEvent(Struct, kw_only=True, tag_field="type", tag="message_stop"):
    """The end."""


MESSAGE_EVENTS = (
    MessageStartEvent,
    ContentBlockStartEvent,
    PingEvent,
    ContentBlockDeltaEvent,
    ContentBlockStopEvent,
    MessageDeltaEvent,
    MessageStopEvent,
)


def event_bytes(name: str, data: bytes) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data)


def _frame(event: Struct) -> bytes:
    return event_bytes(str(event.__struct_config__.tag), msgspec.json.encode(event))


_BLOCK_START = _frame(ContentBlockStartEvent(content_block=TextBlock(text=""))) + _frame(
    PingEvent()
)
_BLOCK_STOP = _frame(ContentBlockStopEvent())
_STOP = _frame(MessageStopEvent())
_DELTA_HEAD, _DELTA_TAIL = _frame(ContentBlockDeltaEvent(delta=TextDeltaBlock(text=""))).split(
    b'""', 1
)


def opening(id: str, model: str, usage: Usage) -> bytes:
    """What comes before the first text."""
    message = MessagesResponse(id=id, model=model, content=[], usage=MessagesUsage.of(usage))
    return _frame(MessageStartEvent(message=message)) + _BLOCK_START


def delta(text: str) -> bytes:
    return _DELTA_HEAD + orjson.dumps(text) + _DELTA_TAIL


def closing(reason: StopReason, sequence: str | None, usage: Usage) -> bytes:
    """What comes after the last text."""
    end = MessageDeltaEvent(
        delta=MessageDelta(stop_reason=reason, stop_sequence=sequence),
        usage=MessagesUsage.of(usage),
    )
    return _BLOCK_STOP + _frame(end) + _STOP
