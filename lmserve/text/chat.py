"""Chat messages as clients send them, made into what chat templates read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lmserve.errors import InvalidField
from lmserve.text.tool_messages import checked_calls


def normalise_messages(
    messages: Sequence[Mapping[str, Any]], *, join_parts: bool, developer: bool
) -> list[dict[str, Any]]:
    """New messages, the given ones left as they are. `join_parts`: lists of text parts become
    one string; `developer`: the template knows that role (else it is `system`)."""
    return [
        _message(message, f"messages[{index}]", join_parts, developer)
        for index, message in enumerate(messages)
    ]


def _message(
    message: Mapping[str, Any], where: str, join_parts: bool, developer: bool
) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InvalidField(f"{where} must be an object with role and content", param=where)
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise InvalidField(f"{where}.role must be a string such as 'user'", param=f"{where}.role")
    content = _content(message, role, f"{where}.content", join_parts)
    if role == "developer" and not developer:
        role = "system"
    return checked_calls({**message, "role": role, "content": content}, where)


def _content(message: Mapping[str, Any], role: str, where: str, join_parts: bool) -> Any:
    content = message.get("content")
    if isinstance(content, str):
        return content
    if content is None and role == "assistant":
        return ""  # an answer of tool calls alone
    if not isinstance(content, list):
        raise InvalidField(f"{where} must be a string or a list of text parts", param=where)
    texts = [_text(part, f"{where}[{index}]") for index, part in enumerate(content)]
    return "\n".join(texts) if join_parts else [dict(part) for part in content]


def _text(part: Any, where: str) -> str:
    if not isinstance(part, Mapping):
        raise InvalidField(f"{where} must be an object such as {{'type': 'text'}}", param=where)
    kind = part.get("type")
    if kind != "text":
        raise InvalidField(
            f"{where}.type is {str(kind)[:50]!r}, and this model reads text only: send parts of "
            "type 'text'",
            param=f"{where}.type",
        )
    text = part.get("text")
    if not isinstance(text, str):
        raise InvalidField(f"{where}.text must be a string", param=f"{where}.text")
    return text
