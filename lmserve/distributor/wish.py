"""What a request asks of the choice of its node. Bodies are looked into for that alone, and are
sent on as they came; what is wrong with one is the node's to say."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import msgspec
from msgspec import Raw, Struct, field

from lmserve.ids import node_of

INTERACTIVE = "/v1/chat/interactive"
SESSIONS = "/v1/sessions"
RESPONSES = "/v1/responses"
STREAMS = "/v1/streams"
FILES = "/v1/files"
BATCHES = "/v1/batches"
MARKS = (4096, 1024, 256)  # bytes; requests alike up to one of them share a beginning
_NONE = Raw(b"")
_EMPTY = (b"", b'""', b"[]", b"null")
_SESSION = re.compile(rf"{SESSIONS}/([^/]+)(/fork)?")
_KEPT = re.compile(rf"(?:{RESPONSES}|{STREAMS}|{FILES}|{BATCHES})/([^/]+)")
_IMPORT = f"{SESSIONS}/import"


class Body(Struct):
    """Values are not checked here, and prompts not even parsed."""

    model: Any = None
    id: Any = None
    session_id: Any = None
    prompt: Raw = _NONE
    system: Raw = _NONE  # Anthropic's, before its messages
    messages: Raw = _NONE
    instructions: Raw = _NONE
    input: Raw = _NONE
    interactive_mode: Any = False
    request_output_len: Any = None
    cancel: Any = False
    conversation: Raw = _NONE
    previous_response_id: Any = None
    input_file_id: Any = None
    regenerate: Any = None
    continue_: Any = field(name="continue", default=None)


@dataclass(frozen=True, slots=True)
class Wish:
    model: str | None = None  # a node that serves it
    session: str | None = None  # the node that keeps it, and no other; a response or stream, too
    session_id: int | str = -1  # as its caller calls it
    kept_by: str | None = None  # that node, by the id that it gave
    again: str | None = None  # the node that got the same request before, while it lives
    prefixes: tuple[bytes, ...] = ()  # the node that saw one lately, if it has time; longest first
    ends_session: bool = False  # this is its last turn
    only_ends: bool = False  # and not even a turn
    opens_for: str | None = None  # it opens something for this API key; the node gives the id
    forks_to: str | None = None  # and this one, if the caller gives it
    forks_to_id: str = ""  # as its caller calls it


def wish_of(
    path: str,
    model: str | None,
    api_key: str,
    body: bytes,
    *,
    method: str = "POST",
    request_key: str | None = None,
) -> Wish:
    """`path` is decoded. `model`: the one in the query, if any. `request_key`: the client's name of
    this request."""
    if path.startswith("/v1/models/"):
        return Wish(model=path.removeprefix("/v1/models/"))
    try:
        found = msgspec.json.decode(body, type=Body) if body else Body()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        found = Body()
    named = found.model if isinstance(found.model, str) else model
    if (path == SESSIONS and method == "POST") or path.startswith(f"{SESSIONS}/"):
        return _of_session(path, named, api_key, found, ends=method == "DELETE")
    if match := _KEPT.match(path):
        return minted(match[1], api_key) or Wish(named)
    if path == BATCHES and method == "POST":
        return minted(found.input_file_id, api_key) or Wish(named)
    if path == RESPONSES and method == "POST":
        return wish_for_response(named, api_key, found, request_key)
    session_id = found.session_id
    if path == INTERACTIVE and type(session_id) is int and session_id >= 0:
        ends = not found.interactive_mode and not found.cancel
        nothing = found.request_output_len == 0 and bytes(found.prompt) in _EMPTY
        return replace(
            kept(session_id, api_key), model=named, ends_session=ends, only_ends=ends and nothing
        )
    opens = (path == INTERACTIVE and bool(found.interactive_mode)) or request_key is not None
    return Wish(
        model=named,
        again=_again(api_key, request_key),
        prefixes=_prefixes(named, found),
        opens_for=api_key if opens else None,
    )


def wish_for_response(model: str | None, api_key: str, body: Body, request_key: str | None) -> Wish:
    """A new one: where what it follows is, else anywhere."""
    for id in (body.previous_response_id, body.continue_, body.regenerate):
        wish = minted(id, api_key)
        if wish is not None:
            return replace(wish, model=model, opens_for=api_key)
    session = _conversation(body.conversation)
    if session:
        return replace(kept(session, api_key), model=model, opens_for=api_key)
    return Wish(
        model=model,
        again=_again(api_key, request_key),
        prefixes=_prefixes(model, body),
        opens_for=api_key,
    )


def kept(id: int | str, api_key: str) -> Wish:
    """For the node that keeps this session, or whose place it is."""
    node = node_of(id) if isinstance(id, str) else None
    return Wish(session=session_key(api_key, id), session_id=id, kept_by=node)


def minted(id: Any, api_key: str) -> Wish | None:
    """For the node that gave this id, where it says which."""
    return kept(id, api_key) if isinstance(id, str) and node_of(id) else None


def session_key(api_key: str, session_id: object) -> str:
    """Ties every request with this key to one node. Whatever else is kept by a node joins here.
    Ids belong to the caller's API key: two keys may use the same."""
    return f"{_digest(api_key)}/{session_id}"


def new_session(model: str | None, api_key: str, body: Body) -> Wish:
    """Of this id, or of one that its node gives."""
    if isinstance(body.id, str) and body.id:
        return replace(kept(body.id, api_key), model=model)
    return Wish(model, prefixes=_prefixes(model, body), opens_for=api_key)


def fork(wish: Wish, api_key: str, id: Any) -> Wish:
    """It is made where its original is, for which the wish is."""
    wish = replace(wish, opens_for=api_key)
    if not (isinstance(id, str) and id):
        return wish
    return replace(wish, forks_to=session_key(api_key, id), forks_to_id=id)


def _of_session(path: str, model: str | None, api_key: str, body: Body, *, ends: bool) -> Wish:
    """Of the routes of /v1/sessions."""
    if path in (SESSIONS, _IMPORT):
        return new_session(model, api_key, body)
    match = _SESSION.match(path)
    if match is None:
        return Wish(model)
    id, forks = match.groups()
    wish = replace(kept(id, api_key), model=model, ends_session=ends and path.count("/") == 3)
    return fork(wish, api_key, body.id) if forks else wish


def _conversation(given: Raw) -> str | None:
    """As a string, or in an object."""
    try:
        found = msgspec.json.decode(given or b"null", type=str | _Conversation | None)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return found.id if isinstance(found, _Conversation) else found


class _Conversation(Struct):
    id: str = ""


def _digest(text: str) -> str:
    """Of what a client may make long, and of what is no text at all."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _again(api_key: str, request_key: str | None) -> str | None:
    return None if request_key is None else f"{_digest(api_key)}/{_digest(request_key)}"


def _prefixes(model: str | None, body: Body) -> tuple[bytes, ...]:
    parts = (body.system, body.messages or body.prompt)
    if body.input:
        parts = (body.instructions, body.input)
    text = b"".join(memoryview(part)[: MARKS[0]] for part in parts)
    head = f"{model}\n".encode("utf-8", "replace")
    return tuple(
        blake2b(head + text[:mark], digest_size=16).digest() for mark in MARKS if len(text) >= mark
    )
