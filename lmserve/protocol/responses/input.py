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
        Meta(
            description="`input_text`, `output_text` or `text`: the models here read text only. Of "
            "reasoning, `reasoning_text` or `summary_text`."
        ),
    ]
    text: str | None = None
    # of an answer that is sent back
    annotations: Annotated[list[Any] | None, Meta(description="Accepted, not used.")] = None
    logprobs: Annotated[list[Any] | None, Meta(description="Accepted, not used.")] = None


class ResponseInputItem(Struct, kw_only=True):
    """A message, a call, what a tool gave, or what the model thought."""

    type: Annotated[
        str | None,
        Meta(
            description="`message` (default), `function_call`, `function_call_output` or "
            "`reasoning`; others are not served."
        ),
    ] = None
    role: Annotated[
        str | None,
        Meta(description="Of a message: `user`, `assistant`, `system` or `developer`."),
    ] = None
    content: Annotated[
        str | list[ResponseInputPart] | None,
        Meta(description="Of a message or of reasoning: text, or its parts."),
    ] = None
    call_id: Annotated[str | None, Meta(description="Of a call, or of a tool's output.")] = None
    name: Annotated[str | None, Meta(description="Of a call: which function.")] = None
    arguments: Annotated[str | None, Meta(description="Of a call: JSON.")] = None
    output: Annotated[
        str | list[ResponseInputPart] | None, Meta(description="Of a tool: text, or its parts.")
    ] = None
    summary: Annotated[
        list[ResponseInputPart] | None,
        Meta(description="Of reasoning: read where it has no content."),
    ] = None
    encrypted_content: Annotated[str | None, Meta(description="Accepted, not used.")] = None
    id: Annotated[str | None, Meta(description="Accepted, not used.")] = None
    status: Annotated[str | None, Meta(description="Accepted, not used.")] = None
    phase: Annotated[str | None, Meta(description="Accepted, not used.")] = None
    namespace: Annotated[str | None, Meta(description="Accepted, not used.")] = None


ResponseInput = str | list[ResponseInputItem]


def input_messages(given: ResponseInput | None, *, steering: bool = False) -> list[dict[str, Any]]:
    """The messages to put into the tree; items of one answer become one. `steering`: only what a
    user or a tool says.

    Raises InvalidField, which names the item and the field."""
    if isinstance(given, str):
        if not given:
            raise InvalidField("input is empty: say something", param="input")
        return [{"role": "user", "content": given}]
    messages: list[dict[str, Any]] = []
    for index, item in enumerate(given or ()):
        message = _message(item, f"input[{index}]", steering)
        if message is not None and not (messages and _joins(messages[-1], message)):
            messages.append(message)
    return messages


def _joins(answer: dict[str, Any], more: dict[str, Any]) -> bool:
    """Adds an item to the answer that it is of, if it is of one. Two texts in a row are two
    answers."""
    if answer["role"] != "assistant" or more["role"] != "assistant":
        return False
    if more["content"] is not None and answer["content"] is not None:
        return False
    if "reasoning_content" in more and (answer["content"] is not None or "tool_calls" in answer):
        return False
    for name in ("content", "reasoning_content"):
        if more.get(name) is not None:
            answer[name] = more[name]
    if "tool_calls" in more:
        answer.setdefault("tool_calls", []).extend(more["tool_calls"])
    return True


def _message(item: ResponseInputItem, where: str, steering: bool) -> dict[str, Any] | None:
    """None: it says nothing."""
    kind = item.type or "message"
    if kind == "function_call_output":
        return _tool_message(item, where)
    if kind == "function_call" and not steering:
        return _call(item, where)
    if kind == "reasoning" and not steering:
        return _thought(item, where)
    if kind != "message":
        known = "" if steering else "'function_call', 'reasoning', "
        raise InvalidField(
            f"{where}.type is {kind[:50]!r}, which is not supported: send items of type "
            f"'message', {known}'function_call_output'",
            param=f"{where}.type",
        )
    _require(item.role, f"{where}.role")
    assert item.role is not None
    roles = ("user",) if steering else tuple(_ROLES)
    if item.role not in roles:
        raise InvalidField(
            f"{where}.role is {item.role[:50]!r}: it must be {' or '.join(roles)}",
            param=f"{where}.role",
        )
    content = _content(item.content, f"{where}.content")
    return {"role": _ROLES[item.role], "content": content}


def _call(item: ResponseInputItem, where: str) -> dict[str, Any]:
    for name in ("call_id", "name", "arguments"):
        _require(getattr(item, name), f"{where}.{name}")
    call = {
        "id": item.call_id,
        "type": "function",
        "function": {"name": item.name, "arguments": item.arguments},
    }
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def _thought(item: ResponseInputItem, where: str) -> dict[str, Any] | None:
    text = item.content if isinstance(item.content, str) else None
    for name in ("content", "summary"):
        parts = getattr(item, name)
        if not text and isinstance(parts, list):
            kinds = ("reasoning_text", "summary_text", "text")
            texts = [_text(part, f"{where}.{name}[{i}]", kinds) for i, part in enumerate(parts)]
            text = "\n".join(texts)
    if not text:
        return None
    return {"role": "assistant", "content": None, "reasoning_content": text}


def _tool_message(item: ResponseInputItem, where: str) -> dict[str, Any]:
    _require(item.call_id, f"{where}.call_id")
    return {
        "role": "tool",
        "content": _content(item.output, f"{where}.output"),
        "tool_call_id": item.call_id,
    }


def _require(value: str | None, where: str) -> None:
    if not value and not (value == "" and where.endswith(".arguments")):
        raise InvalidField(f"{where} is required", param=where)


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


def _text(part: ResponseInputPart, where: str, kinds: Sequence[str] = _TEXTS) -> str:
    if part.type not in kinds:
        raise InvalidField(
            f"{where}.type is {part.type[:50]!r}, and this model reads text only: send parts of "
            f"type {kinds[0]!r}",
            param=f"{where}.type",
        )
    if part.text is None:
        raise InvalidField(f"{where}.text is required", param=f"{where}.text")
    return part.text
