"""Records of answers, and the messages before them, as the protocol tells them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from msgspec import UNSET

from lmserve.protocol.response_objects import (
    TOLD,
    ItemStatus,
    ResponseFailure,
    ResponseIncompleteDetails,
    ResponseItem,
    ResponseItemText,
    ResponseObject,
    ResponseOutputMessage,
    ResponseOutputText,
    ResponseUsage,
)
from lmserve.protocol.sessions import message_id
from lmserve.service.answers.records import Record
from lmserve.service.sessions.tree import Node

_UNTOLD = frozenset(("queued", "in_progress"))


def response_object(record: Record) -> ResponseObject:
    """What was said is in its output once it has ended."""
    told = {name: value for name, value in record.told.items() if name in TOLD}
    told.setdefault("background", record.background)
    completed = record.status == "completed" and record.ended is not None
    has_output = bool(record.text) and record.status not in _UNTOLD
    return ResponseObject(
        id=record.id,
        created_at=int(record.created),
        completed_at=int(record.ended or 0) if completed else None,
        status=record.status,
        error=None if record.error is None else ResponseFailure.of(*record.error),
        incomplete_details=(
            None if record.reason is None else ResponseIncompleteDetails(reason=record.reason)
        ),
        model=record.model,
        output=[output_message(record)] if has_output else [],
        previous_response_id=record.previous,
        successor=record.successor,
        usage=None if record.usage is None else ResponseUsage.of(record.usage),
        session=record.session,
        input_message_ids=[message_id(id) for id in record.input_ids],
        message_id=None if record.message_id is None else message_id(record.message_id),
        **told,
    )


def output_message(record: Record) -> ResponseOutputMessage:
    status: ItemStatus = "completed" if record.status == "completed" else "incomplete"
    return ResponseOutputMessage(
        id=item_id(record), status=status, content=[ResponseOutputText(text=record.text)]
    )


def item_id(record: Record) -> str:
    """Of the answer's message, the same in all its events. None is told where nothing is said."""
    return "" if record.message_id is None else message_id(record.message_id)


def input_item(node: Node) -> ResponseItem:
    message, id = node.message, message_id(node.id)
    texts = _texts(message)
    if message["role"] == "tool":
        return ResponseItem(
            id=id,
            type="function_call_output",
            call_id=message.get("tool_call_id") or UNSET,
            output="\n".join(texts),
        )
    said = message["role"] == "assistant"
    kind: Literal["output_text", "input_text"] = "output_text" if said else "input_text"
    content = [
        ResponseItemText(type=kind, text=text, annotations=[] if said else UNSET) for text in texts
    ]
    return ResponseItem(id=id, type="message", role=message["role"], content=content)


def _texts(message: Mapping[str, Any]) -> list[str]:
    content = message.get("content")
    if isinstance(content, list):
        return [part.get("text") or "" for part in content]
    return [content or ""]
