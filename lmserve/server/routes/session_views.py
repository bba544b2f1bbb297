"""What the routes of /v1/sessions share: ids in, sessions and messages out."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from lmserve.edge.keyring import OWNER
from lmserve.errors import (
    AnswerConflict,
    InvalidField,
    MessageNotFound,
    RequestError,
    SessionNotFound,
)
from lmserve.protocol.responses.objects import (
    ResponseFailure,
    ResponseIncompleteDetails,
    ResponseUsage,
)
from lmserve.protocol.sessions import (
    ROOT,
    Session,
    SessionAnswer,
    SessionMessage,
    SessionMessageList,
    content_of,
    is_session_id,
    message_id,
    message_number,
)
from lmserve.service.sessions.sessions import Node, SessionInfo, SessionKey
from lmserve.service.sessions.tree import Made

SESSION_HEADER = "X-Session-Id"
MANY = 200  # messages: more are gone through in a thread, and other streams go on

T = TypeVar("T")


def session_key(request: web.Request) -> SessionKey:
    """The session that the path names. Raises SessionNotFound."""
    return key_of(request[OWNER], request.match_info["session_id"], "session_id")


def key_of(owner: str, id: str, param: str = "session") -> SessionKey:
    """Raises SessionNotFound."""
    if not is_session_id(id):
        raise SessionNotFound(f"there is no session {id[:70]!r}", param=param)
    return SessionKey(owner, id)


def message(id: str, param: str) -> int:
    """Raises MessageNotFound."""
    number = message_number(id)
    if number is None:
        raise _no_message(id, param)
    return number


def place(id: str, param: str) -> int | None:
    """A message to go on after; None: the root."""
    return None if id == ROOT else message(id, param)


def place_or_head(id: str | None, param: str) -> int | None | UnsetType:
    return UNSET if id is None else place(id, param)


@contextmanager
def naming(id: str | None, param: str) -> Iterator[None]:
    """Tells of a message that is not there, or not in a state for it, by the field that asked
    for it; None: it asked for none."""
    try:
        yield
    except MessageNotFound:
        if id is None:
            raise
        raise _no_message(id, param) from None
    except AnswerConflict as error:
        if id is not None and error.param is None:
            error.message = f"{param} is {id[:50]!r}: {error.message}"
            error.param = param
        raise


@contextmanager
def renaming(param: str) -> Iterator[None]:
    """Tells of what is wrong with messages by the field that held them."""
    try:
        yield
    except RequestError as error:
        name = re.match(r"messages|prompt", error.param or "")
        if error.param is not None and name is not None:
            renamed = param + error.param.removeprefix(name[0])
            if name[0] == "messages":
                error.message = error.message.replace(error.param, renamed)
            error.param = renamed
        raise


@contextmanager
def within(param: str) -> Iterator[None]:
    """Tells of fields by where they are in the body."""
    try:
        yield
    except InvalidField as error:
        if error.param is not None:
            if error.message.startswith(error.param):
                error.message = f"{param}.{error.message}"
            error.param = f"{param}.{error.param}"
        raise


def _no_message(id: str, param: str) -> MessageNotFound:
    return MessageNotFound(f"{param} is {id[:50]!r}: the session has no such message", param=param)


async def aside(num_messages: int, work: Callable[[], T]) -> T:
    """What `work` gives, on the loop where it is short."""
    return work() if num_messages <= MANY else await asyncio.to_thread(work)


def session(info: SessionInfo, running: Sequence[str] = ()) -> Session:
    return Session(
        id=info.id,
        title=info.title or None,
        created_at=int(info.created),
        used_at=int(info.used),
        head=_id_of(info.head),
        num_messages=info.num_messages,
        num_tokens=info.num_tokens,
        running=list(running),
    )


async def message_list(nodes: Sequence[Node]) -> bytes:
    """As JSON."""
    return await aside(len(nodes), lambda: msgspec.json.encode(_message_list(nodes)))


def _message_list(nodes: Sequence[Node]) -> SessionMessageList:
    data = [session_message(node) for node in nodes]
    return SessionMessageList(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
    )


def session_message(node: Node) -> SessionMessage:
    return SessionMessage(
        id=message_id(node.id),
        parent=_id_of(node.parent),
        created_at=int(node.created),
        line_tokens=node.line_tokens,
        siblings=[message_id(sibling) for sibling in node.siblings] or UNSET,
        status=node.state or UNSET,
        response=UNSET if node.made is None else _answer(node.made),
        **content_of(node.message),
    )


def _answer(made: Made) -> SessionAnswer:
    reason, error, usage = made.reason, made.error, made.usage
    return SessionAnswer(
        id=made.response,
        status=made.status,
        incomplete_details=None if reason is None else ResponseIncompleteDetails(reason=reason),
        error=None if error is None else ResponseFailure.of(*error),
        usage=None if usage is None else ResponseUsage.of(usage),
    )


def _id_of(number: int | None) -> str | None:
    return None if number is None else message_id(number)
