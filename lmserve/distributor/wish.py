"""What a request asks of the choice of its node. Bodies are looked into for that alone, and are
sent on as they came; what is wrong with one is the node's to say."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any
from urllib.parse import unquote

import msgspec
from msgspec import Raw, Struct

INTERACTIVE = "/v1/chat/interactive"
SESSIONS = "/v1/sessions"
MARKS = (4096, 1024, 256)  # bytes; requests alike up to one of them share a beginning
_NONE = Raw(b"")
_EMPTY = (b"", b'""', b"[]", b"null")
_SESSION = re.compile(rf"{SESSIONS}/([^/]+)(/fork)?")
_IMPORT = f"{SESSIONS}/import"


class _Body(Struct):
    """Values are not checked here, and prompts not even parsed."""

    model: Any = None
    id: Any = None
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
    session_id: int | str = -1  # as its caller calls it
    prefixes: tuple[bytes, ...] = ()  # the node that saw one lately, if it has time; longest first
    ends_session: bool = False  # this is its last turn
    only_ends: bool = False  # and not even a turn
    opens_for: str | None = None  # it opens a session for this API key; the node gives the id
    forks_to: str | None = None  # and this one, if the caller gives it
    forks_to_id: str = ""  # as its caller calls it


def wish_of(
    path: str, model: str | None, api_key: str, body: bytes, *, method: str = "POST"
) -> Wish:
    """`model`: the one in the query, if any."""
    if path.startswith("/v1/models/"):
        return Wish(model=unquote(path.removeprefix("/v1/models/")))
    try:
        found = msgspec.json.decode(body, type=_Body) if body else _Body()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        found = _Body()
    named = found.model if isinstance(found.model, str) else model
    if (path == SESSIONS and method == "POST") or path.startswith(f"{SESSIONS}/"):
        return _kept(path, named, api_key, found, ends=method == "DELETE")
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


def _kept(path: str, model: str | None, api_key: str, body: _Body, *, ends: bool) -> Wish:
    """Of the routes of /v1/sessions. A fork is made where its original is."""
    if path in (SESSIONS, _IMPORT):
        if isinstance(body.id, str) and body.id:
            return Wish(model, session_key(api_key, body.id), body.id)
        return Wish(model, prefixes=_prefixes(model, body), opens_for=api_key)
    match = _SESSION.match(path)
    if match is None:
        return Wish(model)
    id, forks = match.groups()
    wish = Wish(model, session_key(api_key, id), id, ends_session=ends)
    if not forks:
        return wish
    if not (isinstance(body.id, str) and body.id):
        return replace(wish, opens_for=api_key)
    return replace(
        wish, opens_for=api_key, forks_to=session_key(api_key, body.id), forks_to_id=body.id
    )


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
