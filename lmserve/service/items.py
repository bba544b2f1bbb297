"""What an answer holds, told apart: reasoning, texts and calls, in the order that it said them.

As it is stored, an answer's message has all that the model made as its `content`, and its `items`
beside it where that is not just a text. Everybody else sees it as `as_chat` makes it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from lmserve.types import (
    CallArguments,
    CallBegun,
    Content,
    NamedLogprob,
    Part,
    Reasoning,
    TextDelta,
)


@dataclass(frozen=True, slots=True)
class Call:
    """A function that is called."""

    id: str
    name: str
    arguments: str  # JSON, as the model wrote it
    cut: bool = False  # the answer ended in the middle of it


Item = Content | Reasoning | Call


class Items:
    """Puts parts together as they come."""

    __slots__ = ("_begun", "_logprobs", "_texts")

    def __init__(self, parts: Iterable[Part] = ()):
        self._begun: list[Part] = []  # what each began with
        self._texts: list[list[str]] = []
        self._logprobs: list[list[NamedLogprob]] = []
        for part in parts:
            self.add(part)

    def __len__(self) -> int:
        return len(self._begun)

    def __getitem__(self, index: int) -> Item:
        begun, text = self._begun[index], "".join(self._texts[index])
        if isinstance(begun, CallBegun):
            return Call(begun.id, begun.name, text)
        if isinstance(begun, Reasoning):
            return Reasoning(text)
        return Content(text, tuple(self._logprobs[index]))

    def add(self, part: Part) -> bool:
        """Whether a new item begins with it. A call's arguments come before whatever follows it."""
        last = self._begun[-1] if self._begun else None
        if isinstance(part, CallBegun):
            self._begin(part)
            return True
        begins = not isinstance(part, CallArguments) and type(part) is not type(last)
        if begins:
            self._begin(part)
        self._texts[-1].append(part.text)
        if isinstance(part, Content):
            self._logprobs[-1] += part.logprobs
        return begins

    def _begin(self, part: Part) -> None:
        self._begun.append(part)
        self._texts.append([])
        self._logprobs.append([])

    @property
    def calls(self) -> list[str]:
        """The ids of those begun so far."""
        return [part.id for part in self._begun if isinstance(part, CallBegun)]

    def whole(self, *, cut: bool) -> tuple[Item, ...]:
        """All of them. `cut`: the answer did not come to its end."""
        items = [self[index] for index in range(len(self))]
        if cut and items and isinstance(items[-1], Call) and not _is_json(items[-1].arguments):
            last = items[-1]
            items[-1] = Call(last.id, last.name, last.arguments, cut=True)
        return tuple(items)


def parts_of(delta: TextDelta) -> Sequence[Part]:
    """Where nothing is told apart, all is text."""
    if delta.parts is not None:
        return delta.parts
    return (Content(delta.text),) if delta.text else ()


def as_parts(items: Iterable[Item]) -> list[Part]:
    """From which they could have come."""
    parts: list[Part] = []
    num_calls = 0
    for item in items:
        if isinstance(item, Call):
            parts.append(CallBegun(num_calls, item.id, item.name))
            if item.arguments:
                parts.append(CallArguments(num_calls, item.arguments))
            num_calls += 1
        else:
            parts.append(item)
    return parts


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return False
    return True


# --- as JSON ------------------------------------------------------------------------------------

_Logprobs = tuple[NamedLogprob, ...]
_TEXTS: dict[str, type[Content | Reasoning]] = {"content": Content, "reasoning": Reasoning}


def told_apart(text: str, items: Sequence[Item]) -> Sequence[Item] | None:
    """None where they are just the text."""
    plain = (Content(text),) if text else ()
    return None if tuple(items) == plain else items


def to_message(text: str, items: Sequence[Item] | None) -> dict[str, Any]:
    """An answer as it is stored; `text`: all that the model made."""
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if items is not None:
        message["items"] = [_to_json(item) for item in items]
    return message


def items_of(message: Mapping[str, Any]) -> tuple[Item, ...] | None:
    """Of an answer as it is stored. None: it is just a text."""
    items = message.get("items")
    return None if items is None else tuple(_from_json(item) for item in items)


def pack_logprobs(items: Iterable[Item] | None) -> bytes | None:
    """Of the texts, each in its turn, as their message has none. None: there are none."""
    lists = [item.logprobs for item in items or () if isinstance(item, Content)]
    return zlib.compress(msgspec.msgpack.encode(lists), 1) if any(lists) else None


def with_logprobs(items: Iterable[Item], packed: bytes) -> tuple[Item, ...]:
    lists = iter(msgspec.msgpack.decode(zlib.decompress(packed), type=list[_Logprobs]))
    return tuple(
        [Content(item.text, next(lists)) if isinstance(item, Content) else item for item in items]
    )


def pack_parts(parts: Sequence[Part] | None) -> str | None:
    if parts is None:
        return None
    packed: list[tuple[Any, ...]] = []
    for part in parts:
        match part:
            case CallBegun(index, id, name):
                packed.append(("call", index, id, name))
            case CallArguments(index, text):
                packed.append(("arguments", index, text))
            case Content(text, logprobs):
                packed.append(("content", text, logprobs) if logprobs else ("content", text))
            case Reasoning(text):
                packed.append(("reasoning", text))
    return msgspec.json.encode(packed).decode()


def unpack_parts(packed: str) -> list[Part]:
    made: dict[str, type[Part]] = {
        "call": CallBegun,
        "arguments": CallArguments,
        "reasoning": Reasoning,
    }
    return [
        _content(*rest) if kind == "content" else made[kind](*rest)
        for kind, *rest in msgspec.json.decode(packed)
    ]


def _content(text: str, logprobs: Any = ()) -> Content:
    return Content(text, msgspec.convert(logprobs, _Logprobs))


def _to_json(item: Item) -> dict[str, Any]:
    match item:
        case Content(text):
            return {"content": text}
        case Reasoning(text):
            return {"reasoning": text}
        case Call(id, name, arguments, cut):
            call = {"call": id, "name": name, "arguments": arguments}
            return call | {"cut": True} if cut else call


def _from_json(item: Mapping[str, Any]) -> Item:
    if "call" in item:
        return Call(item["call"], item["name"], item["arguments"], item.get("cut", False))
    [(kind, text)] = item.items()
    return _TEXTS[kind](text)


# --- as a message of a chat ---------------------------------------------------------------------


def as_chat(message: dict[str, Any]) -> dict[str, Any]:
    """A stored message as chat templates and clients know it. A call that was cut is left out:
    nobody can answer it."""
    items = items_of(message)
    if items is None:
        return message
    chat: dict[str, Any] = {"role": "assistant"}
    texts = [item.text for item in items if isinstance(item, Content)]
    thoughts = [item.text for item in items if isinstance(item, Reasoning)]
    calls = [item for item in items if isinstance(item, Call) and not item.cut]
    chat["content"] = "".join(texts) if texts or not calls else None
    if thoughts:
        chat["reasoning_content"] = "".join(thoughts)
    if calls:
        chat["tool_calls"] = [tool_call(call.id, call.name, call.arguments) for call in calls]
    return chat


def tool_call(id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def chat_items(message: Mapping[str, Any]) -> list[Item]:
    """Of an assistant's message as a chat has it."""
    items: list[Item] = []
    if message.get("reasoning_content"):
        items.append(Reasoning(message["reasoning_content"]))
    content = message.get("content")
    if isinstance(content, list):
        items += [Content(part.get("text") or "") for part in content]
    elif content or not message.get("tool_calls"):
        items.append(Content(content or ""))
    for call in message.get("tool_calls") or ():
        function = call.get("function") or {}
        arguments = function.get("arguments", "")
        if not isinstance(arguments, str):
            arguments = msgspec.json.encode(arguments).decode()
        items.append(Call(str(call.get("id", "")), str(function.get("name", "")), arguments))
    return items
