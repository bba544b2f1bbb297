"""A conversation as a tree of messages, for those who look at it; and as JSON, out and in."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lmserve.errors import InvalidField
from lmserve.service.answers.records import Reason, Status
from lmserve.service.items import Item
from lmserve.text.chat import normalise_messages
from lmserve.types import Usage

FORMAT, VERSION = "lmserve.session", 1
MAX_MESSAGES = 20_000  # that one call may bring
_MANY = 200
MAX_TITLE_CHARS = 200
State = Literal["in_progress", "incomplete", "failed"]
_MAX_TIME = 253_402_300_799  # of the year 9999: clients make dates of it
_NODE_FIELDS = ("id", "parent", "created")  # an exported message's, beside its own


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A session as it stands."""

    id: str
    title: str | None
    head: int | None  # the message that its next turn follows; None: it begins anew
    num_messages: int  # of all branches
    num_tokens: int  # stored, of all branches
    created: float
    used: float


@dataclass(frozen=True, slots=True)
class Made:
    """Of an answer: the response that made it, and how that stands."""

    response: str
    status: Status
    reason: Reason | None
    usage: Usage | None
    error: tuple[str, str] | None  # code and message


@dataclass(frozen=True, slots=True)
class Node:
    """One message of the tree."""

    id: int
    parent: int | None
    message: dict[str, Any]
    created: float
    line_tokens: int  # known of the line up to here
    siblings: Sequence[int] = ()  # all with its parent, oldest first; not told with a whole tree
    state: State | None = None  # of an answer that is not whole
    made: Made | None = None  # of an answer, as a line or a tree tells it
    items: Sequence[Item] | None = None  # of an answer, where it is more than a text


@dataclass(frozen=True, slots=True)
class Seed:
    """A message to plant: its parent is one of those before it, by index."""

    message: dict[str, Any]
    parent: int | None = None
    created: float | None = None  # None: now


def check_title(title: object) -> str | None:
    if title is None:
        return None
    if not isinstance(title, str):
        raise InvalidField("title must be a string or null", param="title")
    if len(title) > MAX_TITLE_CHARS:
        raise InvalidField(
            f"title has {len(title)} characters: give at most {MAX_TITLE_CHARS}", param="title"
        )
    _check_unicode(title, "title")
    return title


def check_messages(messages: object) -> None:
    """Refuses what is no list of messages, or too long a one."""
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise InvalidField("messages must be a list", param="messages")
    if len(messages) > MAX_MESSAGES:
        raise InvalidField(
            f"messages has {len(messages)} messages: send at most {MAX_MESSAGES} at once",
            param="messages",
        )
    normalise_messages(messages, join_parts=False, developer=True)


async def check_many(messages: object) -> None:
    """As `check_messages`; off the loop where that takes long."""
    if isinstance(messages, Sequence) and len(messages) > _MANY:
        await asyncio.to_thread(check_messages, messages)
    else:
        check_messages(messages)


def in_a_row(messages: Sequence[dict[str, Any]]) -> list[Seed]:
    """Each the parent of the next."""
    parents = [None, *range(len(messages) - 1)]
    return [Seed(message, parent) for message, parent in zip(messages, parents, strict=False)]


# --- as JSON ------------------------------------------------------------------------------


def to_export(info: SessionInfo, nodes: Sequence[Node]) -> dict[str, Any]:
    """Parents come first. Tokens stay here: they mean nothing to another model."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "title": info.title,
        "head": info.head,
        "messages": [
            {**node.message, "id": node.id, "parent": node.parent, "created": node.created}
            for node in nodes
            if node.state != "in_progress"  # nothing follows those
        ],
    }


def from_export(exported: Mapping[str, Any]) -> tuple[str | None, list[Seed], int | None]:
    """Title, messages, and the index of the head. Raises InvalidField, naming what is wrong."""
    if not isinstance(exported, Mapping):
        raise InvalidField("the export must be a JSON object")
    if exported.get("format") != FORMAT:
        raise InvalidField(f"format must be {FORMAT!r}: is this an export?", param="format")
    version = exported.get("version")
    if version != VERSION or isinstance(version, bool):
        raise InvalidField(f"version must be {VERSION}", param="version")
    title = check_title(exported.get("title"))
    messages = exported.get("messages")
    check_messages(messages)
    seeds: list[Seed] = []
    places: dict[int | str, int] = {}  # of the ids seen
    for index, message in enumerate(messages or ()):
        where = f"messages[{index}]"
        parent = _place(message.get("parent"), places, f"{where}.parent", "a message before it")
        created = _time(message.get("created"), f"{where}.created")
        id = message.get("id")
        if not isinstance(id, int | str) or isinstance(id, bool):
            raise InvalidField(f"{where}.id must be an integer or a string", param=f"{where}.id")
        if id in places:
            raise InvalidField(
                f"{where}.id is that of messages[{places[id]}] too: give each its own",
                param=f"{where}.id",
            )
        places[id] = index
        own = {name: value for name, value in message.items() if name not in _NODE_FIELDS}
        seeds.append(Seed(own, parent, created))
    return title, seeds, _place(exported.get("head"), places, "head", "one of the messages")


def _place(id: object, places: Mapping[int | str, int], where: str, what: str) -> int | None:
    if id is None:
        return None
    if not isinstance(id, int | str) or isinstance(id, bool) or id not in places:
        raise InvalidField(f"{where} must be the id of {what}, or null", param=where)
    return places[id]


def _time(value: object, where: str) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= _MAX_TIME:
        raise InvalidField(f"{where} must be a time in seconds since 1970", param=where)
    return float(value)


def _check_unicode(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidField(
            f"{where} holds half of a surrogate pair, which is not valid Unicode", param=where
        ) from None
