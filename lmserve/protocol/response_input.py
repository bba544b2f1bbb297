"""What is said to a response: a string, or items, made into messages of a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from msgspec import Meta, Struct

from lmserve.errors import InvalidField

_TEXTS = ("input_text", "output_text", "text")
_ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}


class ResponseInputPart(Struct, kw_only=True):
    """One part of an item's content."""

    type: Annotated[
        str,
        Meta(description="`input_text`, `output_text` or `text`: the models here read text only."),
    ]
    text: str | None = None
    # of an answer that is sent back
    annotations: Annotated[list[Any] | None, Meta(description="Accepted, not used.")] = None
    logprobs: Annotated[list[Any] | None, Meta(description="Accepted, not used.")] = None


class ResponseInputItem(Struct, kw_only=True):
    """A message, or what a tool gave."""

    type: Annotated[
        str | None,
        Meta(description="`message` (default) or `function_call_output`; others are not served."),
    ] = None
    role: Annotated[
        str | None,
        Meta(description="Of a message: `user`, `assistant`, `system` or `developer`."),
    ] = None
    content: Annotated[
        str | list[ResponseInputPart] | None, Meta(description="Of a message: text, or its parts.")
    ] = None
    call_id: Annotated[str | None, Meta(description="Of a tool's output: which call's.")] = None
    output: Annotated[
        str | list[ResponseInputPart] | None, Meta(description="Of a tool: text, or its parts.")
    ] = None
    name: Annotated[str | None, Meta(description="Accepted, not used.")] = None
    id: Annotated[str | None, Meta(description="Accepted, not used.")] = None
    status: Annotated[str | None, Meta(description="Accepted, not used.")] = None
    phase: Annotated[str | None, Meta(description="Accepted, not used.")] = None


ResponseInput = str | list[ResponseInputItem]


def input_messages(given: ResponseInput | None, *, steering: bool = False) -> list[dict[str, Any]]:
    """The messages to put into the tree. `steering`: only what a user or a tool says.

    Raises InvalidField, which names the item and the field."""
    if isinstance(given, str):
        if not given:
            raise InvalidField("input is empty: say something", param="input")
        return [{"role": "user", "content": given}]
    return [_message(item, f"input[{i}]", steering) for i, item in enumerate(given or ())]


def _message(item: ResponseInputItem, where: str, steering: bool) -> dict[str, Any]:
    if item.type == "function_call_output":
        return _tool_message(item, where)
    if item.type not in (None, "message"):
        raise InvalidField(
            f"{where}.type is {item.type[:50]!r}, which is not supported yet: send items of type "
            "'message' or 'function_call_output'",
            param=f"{where}.type",
        )
    if item.role is None:
        raise InvalidField(f"{where}.role is required", param=f"{where}.role")
    roles = ("user",) if steering else tuple(_ROLES)
    if item.role not in roles:
        raise InvalidField(
            f"{where}.role is {item.role[:50]!r}: it must be {' or '.join(roles)}",
            param=f"{where}.role",
        )
    content = _content(item.content, f"{where}.content")
    return {"role": _ROLES[item.role], "content": content}


def _tool_message(item: ResponseInputItem, where: str) -> dict[str, Any]:
    if not item.call_id:
        raise InvalidField(f"{where}.call_id is required", param=f"{where}.call_id")
    return {
        "role": "tool",
        "content": _content(item.output, f"{where}.output"),
        "tool_call_id": item.call_id,
    }


def _content(
    content: str | Sequence[ResponseInputPart] | None, where: str
) -> str | list[dict[str, str]]:
    """One part is as good as its text."""
    if content is None:
        raise InvalidField(f"{where} is required", param=where)
    if isinstance(content, str):
        return content
    texts = [_text(part, f"{where}[{index}]") for index, part in enumerate(content)]
    if len(texts) < 2:
        return "".join(texts)
    return [{"type": "text", "text": text} for text in texts]


def _text(part: ResponseInputPart, where: str) -> str:
    if part.type not in _TEXTS:
        raise InvalidField(
            f"{where}.type is {part.type[:50]!r}, and this model reads text only: send parts of "
            "type 'input_text'",
            param=f"{where}.type",
        )
    if part.text is None:
        raise InvalidField(f"{where}.text is required", param=f"{where}.text")
    return part.text
