"""What answers hold, and the messages before them, as the protocol's items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

from msgspec import UNSET

from lmserve.protocol.logprobs import ChatTokenLogprob, token_logprobs_json
from lmserve.protocol.responses.items import (
    ItemStatus,
    ResponseFunctionCall,
    ResponseItem,
    ResponseItemText,
    ResponseOutputItem,
    ResponseOutputMessage,
    ResponseOutputReasoning,
    ResponseOutputText,
    ResponseReasoningText,
)
from lmserve.protocol.sessions import message_id
from lmserve.service.answers.records import Record
from lmserve.service.items import Call, Item, chat_items
from lmserve.service.sessions.tree import Node
from lmserve.types import Content, Reasoning

_PREFIXES: dict[type[Any], str] = {Content: "msg", Reasoning: "rs", Call: "fc"}


def output_items(record: Record) -> list[ResponseOutputItem]:
    """Of an answer that has ended."""
    return [output_item(record, index) for index in range(len(record.said))]


def output_item(record: Record, index: int) -> ResponseOutputItem:
    """Only the last one may have been cut."""
    assert record.message_id is not None
    items = record.said
    is_cut = record.status != "completed" and index == len(items) - 1
    return told(items[index], item_id(record.message_id, items, index), is_cut=is_cut)


def item_id(message: int, items: Sequence[Item], index: int) -> str:
    """The first text of an answer has the id of its message."""
    kind = type(items[index])
    id = message_id(message).replace("msg", _PREFIXES[kind], 1)
    is_first = kind not in [type(item) for item in items[:index]]
    return id if is_first and kind is not Call else f"{id}_{index}"


def told(item: Item, id: str, *, is_cut: bool = False) -> ResponseOutputItem:
    """An item that is over."""
    status: ItemStatus = "incomplete" if is_cut else "completed"
    match item:
        case Content(text, logprobs):
            rated = cast("list[ChatTokenLogprob]", token_logprobs_json(logprobs))  # made once
            content = [ResponseOutputText(text=text, logprobs=rated)]
            return ResponseOutputMessage(id=id, status=status, content=content)
        case Reasoning(text):
            thoughts = [ResponseReasoningText(text=text)]
            return ResponseOutputReasoning(id=id, status=status, content=thoughts)
        case Call(call_id, name, arguments, was_cut):
            status = "incomplete" if was_cut else "completed"
            return ResponseFunctionCall(
                id=id, call_id=call_id, name=name, arguments=arguments, status=status
            )


# --- of the input ---------------------------------------------------------------------------


def input_items(node: Node) -> list[ResponseItem]:
    """A message; or all that an answer held."""
    message, id = node.message, message_id(node.id)
    if message["role"] == "assistant":
        items = chat_items(message) if node.items is None else node.items
        return [_input_item(items, i, node.id) for i in range(len(items))]
    texts = _texts(message.get("content"))
    if message["role"] == "tool":
        return [
            ResponseItem(
                id=id,
                type="function_call_output",
                call_id=message.get("tool_call_id") or UNSET,
                output="\n".join(texts),
            )
        ]
    content = [ResponseItemText(type="input_text", text=text) for text in texts]
    return [ResponseItem(id=id, type="message", role=message["role"], content=content)]


def _input_item(items: Sequence[Item], index: int, message: int) -> ResponseItem:
    id = item_id(message, items, index)
    match items[index]:
        case Content(text):
            content = [ResponseItemText(type="output_text", text=text, annotations=[])]
            return ResponseItem(id=id, type="message", role="assistant", content=content)
        case Reasoning(text):
            content = [ResponseItemText(type="reasoning_text", text=text)]
            return ResponseItem(id=id, type="reasoning", summary=[], content=content)
        case Call(call_id, name, arguments, cut):
            status: Literal["incomplete", "completed"] = "incomplete" if cut else "completed"
            return ResponseItem(
                id=id,
                type="function_call",
                call_id=call_id,
                name=name,
                arguments=arguments,
                status=status,
            )


def _texts(content: Any) -> list[str]:
    if isinstance(content, list):
        return [part.get("text") or "" for part in content]
    return [content or ""]
