"""Anthropic's messages as they are streamed. A delta costs one `orjson.dumps` of its text."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import orjson
from msgspec import Struct

from lmserve.protocol.anthropic.answers import (
    SIGNATURE,
    Block,
    MessagesResponse,
    MessagesUsage,
    StopReason,
    TextBlock,
    ThinkingBlock,
    ToolUseBlock,
    parts_of,
)
from lmserve.types import CallArguments, CallBegun, Content, Reasoning, TextDelta, Usage


class MessageStartEvent(Struct, kw_only=True, tag_field="type", tag="message_start"):
    """The message, with nothing in it yet."""

    message: MessagesResponse


class ContentBlockStartEvent(Struct, kw_only=True, tag_field="type", tag="content_block_start"):
    """A block, with nothing in it yet."""

    index: int
    content_block: Block


class PingEvent(Struct, kw_only=True, tag_field="type", tag="ping"):
    """Means nothing."""


class TextDeltaBlock(Struct, kw_only=True, tag_field="type", tag="text_delta"):
    text: str


class ThinkingDeltaBlock(Struct, kw_only=True, tag_field="type", tag="thinking_delta"):
    thinking: str


class SignatureDeltaBlock(Struct, kw_only=True, tag_field="type", tag="signature_delta"):
    """Ends a block of thinking."""

    signature: str


class InputJsonDeltaBlock(Struct, kw_only=True, tag_field="type", tag="input_json_delta"):
    """A piece of the JSON of a call's arguments."""

    partial_json: str


class ContentBlockDeltaEvent(Struct, kw_only=True, tag_field="type", tag="content_block_delta"):
    """More of the block."""

    index: int
    delta: TextDeltaBlock | ThinkingDeltaBlock | SignatureDeltaBlock | InputJsonDeltaBlock


class ContentBlockStopEvent(Struct, kw_only=True, tag_field="type", tag="content_block_stop"):
    index: int


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


_PING, _STOP = _frame(PingEvent()), _frame(MessageStopEvent())


class MessageTeller:
    """Tells one answer, block after block."""

    def __init__(
        self, id: str, model: str, usage: Callable[[], Usage], *, shows_thinking: bool = True
    ):
        self._id = id
        self._model = model
        self._usage = usage  # so far
        self._shows_thinking = shows_thinking
        self._begun = False
        self._index = -1  # of the last block
        self._open: type[Block] | None = None  # what that is, until it is stopped
        self._head = self._tail = b""  # around the text of its deltas

    def delta(self, delta: TextDelta) -> bytes:
        """b"" where there is nothing to tell yet."""
        if delta.parts is None and self._open is TextBlock:
            return self._text(delta.text)
        events = [] if self._begun else [self._begin()]
        for part in parts_of(delta):
            match part:
                case Content(text):
                    events.append(self._opened(TextBlock(text="")) + self._text(text))
                case Reasoning(text):
                    events.append(self._opened(ThinkingBlock(thinking="", signature="")))
                    if self._shows_thinking:
                        events.append(self._text(text))
                case CallBegun(_, id, name):
                    events.append(self._start(ToolUseBlock(id=id, name=name, input={})))
                case CallArguments(_, text):
                    events.append(self._text(text))
        return b"".join(events)

    def final(self, reason: StopReason, sequence: str | None, usage: Usage) -> bytes:
        begin = b"" if self._begun else self._begin()
        if self._index < 0:
            begin += self._start(TextBlock(text=""))
        end = MessageDeltaEvent(
            delta=MessageDelta(stop_reason=reason, stop_sequence=sequence),
            usage=MessagesUsage.of(usage),
        )
        return begin + self._stop() + _frame(end) + _STOP

    def _begin(self) -> bytes:
        self._begun = True
        message = MessagesResponse(
            id=self._id, model=self._model, content=[], usage=MessagesUsage.of(self._usage())
        )
        return _frame(MessageStartEvent(message=message))

    def _opened(self, block: Block) -> bytes:
        """Where another kind of block is open, or none."""
        return b"" if self._open is type(block) else self._start(block)

    def _start(self, block: Block) -> bytes:
        before = self._stop()
        self._index += 1
        self._open = type(block)
        empty = ContentBlockDeltaEvent(index=self._index, delta=_EMPTY[type(block)])
        self._head, self._tail = _frame(empty).rsplit(b'""', 1)
        started = _frame(ContentBlockStartEvent(index=self._index, content_block=block))
        return before + started + (b"" if self._index else _PING)

    def _text(self, text: str) -> bytes:
        return self._head + orjson.dumps(text) + self._tail

    def _stop(self) -> bytes:
        if self._open is None:
            return b""
        signed = b""
        if self._open is ThinkingBlock:
            delta = SignatureDeltaBlock(signature=SIGNATURE)
            signed = _frame(ContentBlockDeltaEvent(index=self._index, delta=delta))
        self._open = None
        return signed + _frame(ContentBlockStopEvent(index=self._index))


_EMPTY: dict[type[Block], TextDeltaBlock | ThinkingDeltaBlock | InputJsonDeltaBlock] = {
    TextBlock: TextDeltaBlock(text=""),
    ThinkingBlock: ThinkingDeltaBlock(thinking=""),
    ToolUseBlock: InputJsonDeltaBlock(partial_json=""),
}
