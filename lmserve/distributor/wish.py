"""What a request asks of the choice of its node. Bodies are looked into for that alone, and are
sent on as they came; what is wrong with one is the node's to say."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Any
from urllib.parse import unquote

import msgspec
from msgspec import Raw, Struct

INTERACTIVE = "/v1/chat/interactive"
MARKS = (4096, 1024, 256)  # bytes; requests alike up to one of them share a beginning
_NONE = Raw(b"")
_EMPTY = (b"", b'""', b"[]", b"null")


class _Body(Struct):
    """Values are not checked here, and prompts not even parsed."""

    model: Any = None
    session_id: Any = None
    prompt: Raw = _NONE
    messages: Raw = _NONE
    interactive_mode: Any = False
    request_output_len: Any = None
    cancel: Any = False


@dataclass(frozen=True, slots=True)
class Wish:
    model: str | None = None  # a node that serves it
    session: str | None = None  # the node that keeps it, and no other
    session_id: int = -1  # as its caller calls it
    prefixes: tuple[bytes, ...] = ()  # the node that saw one lately, if it has time; longest first
    ends_session: bool = False  # this is its last turn
    only_ends: bool = False  # and not even a turn
    opens_for: str | None = None  # it opens a session for this API key; the node gives the id


def wish_of(path: str, model: str | None, api_key: str, body: bytes) -> Wish:
    """`model`: the one in the query, if any."""
    if path.startswith("/v1/models/"):
        return Wish(model=unquote(path.removeprefix("/v1/models/")))
    try:
        found = msgspec.json.decode(body, type=_Body) if body else _Body()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        found = _Body()
    named = found.model if isinstance(found.model, str) else model
    session_id = found.session_id
    if path == INTERACTIVE and type(session_id) is int and session_id >= 0:
        ends = not found.interactive_mode and not found.cancel
        nothing = found.request_output_len == 0 and bytes(found.prompt) in _EMPTY
        return Wish(
            model=named,
            session=session_key(api_key, session_id),
            session_id=session_id,
            ends_session=ends,
            only_ends=ends and nothing,
        )
    opens = path == INTERACTIVE and bool(found.interactive_mode)
    return Wish(model=named, prefixes=_prefixes(named, found), opens_for=api_key if opens else None)


def session_key(api_key: str, session_id: object) -> str:
    """Ties every request with this key to one node. Whatever else is kept by a node joins here.
    Ids belong to the caller's API key: two keys may use the same."""
    owner = blake2b(api_key.encode("utf-8", "replace"), digest_size=16).hexdigest()
    return f"{owner}/{session_id}"


def _prefixes(model: str | None, body: _Body) -> tuple[bytes, ...]:
    text = memoryview(body.messages or body.prompt)
    head = f"{model}\n".encode("utf-8", "replace")
    return tuple(
        blake2b(head + text[:mark], digest_size=16).digest() for mark in MARKS if len(text) >= mark
    )
