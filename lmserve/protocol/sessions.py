"""`/v1/sessions`: conversations that the server keeps, each a tree of messages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, structs

from lmserve.errors import InvalidField
from lmserve.protocol.openai.chat import ChatMessage, ContentPart, Role, plain_message
from lmserve.protocol.responses.objects import (
    ResponseFailure,
    ResponseIncompleteDetails,
    ResponseStatus,
    ResponseUsage,
)

ROOT = "root"  # where a tree begins: the parent of first messages
MAX_LIMIT = 100
DEFAULT_LIMIT = 20

_SESSION_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_NOT_IDS = (".", "..", "import")  # these mean something else in a path
_MESSAGE_ID = re.compile(r"msg_([1-9][0-9]{0,17})")

_ID = "The session's id: letters, digits, `_`, `.`, `-`, at most 64. Default: a new one."
_WHERE = "A message's id, or `root`: before the first message."


def is_session_id(text: str) -> bool:
    return _SESSION_ID.fullmatch(text) is not None and text not in _NOT_IDS


def message_id(number: int) -> str:
    return f"msg_{number}"


def message_number(id: str) -> int | None:
    """None: no message has such an id."""
    match = _MESSAGE_ID.fullmatch(id)
    return None if match is None else int(match[1])


def _check_id(id: str | None) -> None:
    if id is not None and not is_session_id(id):
        raise InvalidField(
            f"id is {id[:70]!r}: use 1 to 64 letters, digits, '_', '.' or '-', and not 'import'",
            param="id",
        )


# --- requests -----------------------------------------------------------------------------


class SessionCreate(Struct, kw_only=True):
    """A new session."""

    id: Annotated[str | None, Meta(description=_ID)] = None
    title: Annotated[str | None, Meta(description="For people.")] = None
    messages: Annotated[
        list[ChatMessage] | None, Meta(description="What it begins with, oldest first.")
    ] = None

    def check(self) -> None:
        _check_id(self.id)

    def plain(self) -> list[dict[str, Any]]:
        return [plain_message(message) for message in self.messages or ()]


class SessionUpdate(Struct, kw_only=True):
    """What is to change; the rest stays."""

    title: Annotated[str | None, Meta(description='The new title; `""` takes it away.')] = None
    head: Annotated[
        str | None | UnsetType,
        Meta(description=f"Where the next turn goes on. {_WHERE} null is `root`."),
    ] = UNSET


class SessionAppend(Struct, kw_only=True):
    """Messages to keep, which are not answered."""

    messages: Annotated[list[ChatMessage], Meta(description="Oldest first.")]
    after: Annotated[str | None, Meta(description=f"{_WHERE} Default: the session's head.")] = None

    def plain(self) -> list[dict[str, Any]]:
        if not self.messages:
            raise InvalidField("messages is empty: give at least one message", param="messages")
        return [plain_message(message) for message in self.messages]


class SessionFork(Struct, kw_only=True):
    """A new session that begins with the line of another."""

    at: Annotated[
        str | None, Meta(description="The last message to take. Default: the session's head.")
    ] = None
    id: Annotated[str | None, Meta(description=_ID)] = None
    title: Annotated[str | None, Meta(description="Default: the other's.")] = None

    def check(self) -> None:
        _check_id(self.id)


class ExportedMessage(ChatMessage, kw_only=True):
    """One message of a tree. Its id is its name in the export, no more."""

    id: int
    parent: Annotated[
        int | None, Meta(description="The id of one that came before; null: it begins the tree.")
    ] = None
    created: Annotated[float | None, Meta(description="Unix time. Default: now.")] = None


class SessionExport(Struct, kw_only=True):
    """All of a session, to be kept elsewhere. Tokens are left out: they are one model's."""

    format: Annotated[str, Meta(description="`lmserve.session`.")]
    version: int
    title: str | None = None
    head: Annotated[int | None, Meta(description="A message's id.")] = None
    messages: Annotated[list[ExportedMessage], Meta(description="Each after its parent.")]

    def plain(self) -> dict[str, Any]:
        given = structs.asdict(self)
        return given | {"messages": [plain_message(message) for message in self.messages]}


class SessionImport(Struct, kw_only=True):
    """A session as it was exported."""

    session: Annotated[SessionExport, Meta(description="What an export gave.")]
    id: Annotated[str | None, Meta(description=_ID)] = None

    def check(self) -> None:
        _check_id(self.id)


# --- answers ------------------------------------------------------------------------------


class Session(Struct, kw_only=True):
    """One conversation that is kept."""

    id: str
    object: Literal["session"] = "session"
    title: str | None
    created_at: Annotated[int, Meta(description="Unix time in seconds.")]
    used_at: Annotated[int, Meta(description="When it was last changed or answered.")]
    head: Annotated[str | None, Meta(description="The message after which the next turn goes on.")]
    num_messages: Annotated[int, Meta(description="In all branches.")]
    num_tokens: Annotated[int, Meta(description="In all branches.")]
    running: Annotated[
        list[str] | UnsetType,
        Meta(description="The responses that are being made, where one session is asked for."),
    ] = UNSET


class SessionList(Struct, kw_only=True):
    """Sessions, the last used first."""

    object: Literal["list"] = "list"
    data: list[Session]
    first_id: str | None
    last_id: str | None
    has_more: Annotated[bool, Meta(description="More come with `after` set to `last_id`.")]


class SessionDeleted(Struct, kw_only=True):
    """It is gone, with all its branches."""

    id: str
    object: Literal["session.deleted"] = "session.deleted"
    deleted: bool = True


class SessionCancelled(Struct, kw_only=True):
    """What ran in the session is stopped."""

    cancelled: Annotated[bool, Meta(description="Whether an answer was running.")]


class SessionAnswer(Struct, kw_only=True):
    """The response that made an answer, in short."""

    id: str
    status: ResponseStatus
    incomplete_details: ResponseIncompleteDetails | None = None
    error: ResponseFailure | None = None
    usage: ResponseUsage | None = None


class SessionMessage(Struct, kw_only=True):
    """One message of a session's tree."""

    id: str
    object: Literal["session.message"] = "session.message"
    parent: Annotated[str | None, Meta(description="The message it follows; null: the root.")]
    role: Role
    content: str | list[ContentPart]
    name: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[dict[str, Any]] | UnsetType = UNSET
    tool_call_id: str | UnsetType = UNSET
    created_at: int
    line_tokens: Annotated[
        int, Meta(description="Tokens from the root up to here, as far as they are known.")
    ]
    siblings: Annotated[
        list[str] | UnsetType,
        Meta(
            description="All messages with the same parent, itself too, oldest first. Left out "
            "with `tree`, which shows them."
        ),
    ] = UNSET
    status: Annotated[
        Literal["in_progress", "incomplete", "failed"] | UnsetType,
        Meta(description="Of an answer that is not whole."),
    ] = UNSET
    response: Annotated[
        SessionAnswer | UnsetType, Meta(description="Of an answer that was made here.")
    ] = UNSET


class SessionMessageList(Struct, kw_only=True):
    """Messages, each after its parent."""

    object: Literal["list"] = "list"
    data: list[SessionMessage]
    first_id: str | None
    last_id: str | None
    has_more: bool = False


def content_of(message: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a SessionMessage that a stored message has."""
    fields: dict[str, Any] = {"role": message["role"], "content": _content(message.get("content"))}
    for name in ("name", "reasoning_content", "tool_calls", "tool_call_id"):
        if message.get(name) is not None:
            fields[name] = message[name]
    return fields


def _content(content: Any) -> str | list[ContentPart]:
    if isinstance(content, list):
        return [ContentPart(type=part["type"], text=part.get("text")) for part in content]
    return content or ""  # null: an answer of tool calls alone


def whole_number(text: str, name: str, least: int, most: int) -> int:
    """A number in the URL."""
    if re.fullmatch(r"[0-9]{1,9}", text) and least <= int(text) <= most:
        return int(text)
    raise InvalidField(
        f"{name} is {text[:50]!r}: it must be a whole number from {least} to {most}", param=name
    )


def truth(text: str, name: str) -> bool:
    """A yes or no in the URL."""
    if text not in ("true", "false"):
        raise InvalidField(f"{name} is {text[:50]!r}: it must be true or false", param=name)
    return text == "true"
