"""What an answer holds, told as events while it is made. A delta costs one `orjson.dumps`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import orjson

from lmserve.protocol.logprobs import token_logprobs
from lmserve.protocol.responses import events as wire
from lmserve.protocol.responses.items import (
    ResponseFunctionCall,
    ResponseOutputItem,
    ResponseOutputMessage,
    ResponseOutputText,
    ResponsePart,
    ResponseReasoningText,
)
from lmserve.server.responses.item_views import item_id, told
from lmserve.service.items import Call, Item, Items
from lmserve.service.streams.stream import StreamEvent
from lmserve.types import CallBegun, Content, NamedLogprob, Part, Reasoning

# The name, and what is between the item's place and the delta.
_DELTAS: dict[type[object], tuple[bytes, bytes]] = {
    Content: (
        wire.event_name(wire.ResponseTextDeltaEvent).encode(),
        b',"content_index":0',
    ),
    Reasoning: (
        wire.event_name(wire.ResponseReasoningDeltaEvent).encode(),
        b',"content_index":0',
    ),
    Call: (wire.event_name(wire.ResponseArgumentsDeltaEvent).encode(), b""),
}


class ItemEvents:
    """Those of one answer; `message`: the id of its message."""

    __slots__ = ("_head", "_id", "_items", "_message", "_middle", "_name")

    def __init__(self, message: int):
        self._message = message
        self._items = Items()
        self._id = ""  # of the item that is being told, as is the rest
        self._name = self._head = self._middle = b""

    def tell(self, parts: Sequence[Part], number: int) -> list[StreamEvent]:
        events: list[StreamEvent] = []
        for part in parts:
            if self._items.add(part):
                events += self._turn(number + len(events))
            if not isinstance(part, CallBegun):
                rest = _rated(part.logprobs) if isinstance(part, Content) else b"}"
                data = b"%b%d%b%b%b" % (
                    self._head, number + len(events), self._middle, orjson.dumps(part.text), rest
                )  # fmt: skip
                events.append(StreamEvent(self._name, data))
        return events

    def _turn(self, number: int) -> list[StreamEvent]:
        """From one item to the next."""
        index = len(self._items) - 1
        events: list[StreamEvent] = []
        if index:
            events = _done(told(self._items[index - 1], self._id), index - 1, number)
        item = self._items[index]
        self._id = item_id(self._message, self._items.whole(cut=False), index)
        self._name, rest = _DELTAS[type(item)]
        self._head = b'{"type":"%b","sequence_number":' % self._name
        self._middle = b',"item_id":%b,"output_index":%d%b,"delta":' % (
            orjson.dumps(self._id), index, rest
        )  # fmt: skip
        return events + _begun(item, self._id, index, number + len(events))


def _rated(logprobs: Sequence[NamedLogprob]) -> bytes:
    if not logprobs:
        return b',"logprobs":[]}'
    return b',"logprobs":%b}' % msgspec.json.encode(token_logprobs(logprobs))


def last_done(items: Sequence[ResponseOutputItem], number: int) -> list[StreamEvent]:
    """The end of the last of all; whoever told of that one may be gone."""
    index = len(items) - 1
    return [] if index < 0 else _done(items[index], index, number)


def event(event: wire.ResponseEvent) -> StreamEvent:
    return StreamEvent(wire.event_name(type(event)).encode(), msgspec.json.encode(event))


def _begun(item: Item, id: str, index: int, number: int) -> list[StreamEvent]:
    opened = told(item, id)
    opened.status = "in_progress"
    part: ResponsePart | None = None
    if isinstance(opened, ResponseFunctionCall):
        opened.arguments = ""
    else:
        is_text = isinstance(opened, ResponseOutputMessage)
        part = ResponseOutputText(text="") if is_text else ResponseReasoningText(text="")
        opened.content = []
    events: list[wire.ResponseEvent] = [
        wire.ResponseOutputItemAddedEvent(sequence_number=number, output_index=index, item=opened)
    ]
    if part is not None:
        events.append(
            wire.ResponseContentPartAddedEvent(
                sequence_number=number + 1, item_id=id, output_index=index, part=part
            )
        )
    return [event(each) for each in events]


def _done(item: ResponseOutputItem, index: int, number: int) -> list[StreamEvent]:
    events: list[wire.ResponseEvent] = []
    if isinstance(item, ResponseFunctionCall):
        events.append(
            wire.ResponseArgumentsDoneEvent(
                sequence_number=number,
                item_id=item.id,
                output_index=index,
                arguments=item.arguments,
            )
        )
    else:
        [part] = item.content
        place: dict[str, Any] = {
            "sequence_number": number,
            "item_id": item.id,
            "output_index": index,
        }
        events += (
            wire.ResponseTextDoneEvent(**place, text=part.text, logprobs=part.logprobs)
            if isinstance(part, ResponseOutputText)
            else wire.ResponseReasoningDoneEvent(**place, text=part.text),
            wire.ResponseContentPartDoneEvent(
                sequence_number=number + 1, item_id=item.id, output_index=index, part=part
            ),
        )
    last = number + len(events)
    events.append(
        wire.ResponseOutputItemDoneEvent(sequence_number=last, output_index=index, item=item)
    )
    return [event(each) for each in events]
