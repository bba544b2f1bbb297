"""What is asked of sessions by events, each answered by one: the functions that REST calls."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Any

import msgspec

from lmserve.errors import SessionNotFound
from lmserve.protocol import sessions, socket
from lmserve.protocol.drafts import SessionDraft
from lmserve.protocol.responses.objects import ResponseObject
from lmserve.protocol.sessions import SessionUpdate
from lmserve.server.session_calls import SessionCalls
from lmserve.server.socket.drafting import Drafting
from lmserve.server.socket.responses import Responses


@dataclass(frozen=True, slots=True)
class Callee:
    """What one connection may ask."""

    sessions: SessionCalls
    responses: Responses
    drafting: Drafting


Key = Callable[[Any], Hashable]  # events of one key are done in the order in which they came


@dataclass(frozen=True, slots=True)
class Call:
    event: type[msgspec.Struct]
    results: tuple[type[msgspec.Struct], ...]  # one of them
    run: Callable[[Callee, Any], Awaitable[bytes]]  # gives the result's JSON
    key: Key


def _session(event: Any) -> Hashable:
    return str(event.session)


def _new_session(event: Any) -> Hashable:
    return str(event.id)


def _at_once(event: Any) -> Hashable:
    return object()


def _update_key(event: socket.Update) -> Hashable:
    return event.session if event.of_session() else object()


def _draft_key(event: socket.Draft) -> Hashable:
    return ("draft", event.session or event.previous_response_id)


async def done(call: Call, callee: Callee, event: Any) -> bytes:
    """The result of it, as JSON."""
    try:
        return await call.run(callee, event)
    except SessionNotFound as error:
        if error.param == "session_id":  # as a path names it
            error.param = "session"
        raise


async def _create(callee: Callee, event: socket.Create) -> bytes:
    return (await callee.sessions.create(event))[0]


async def _list(callee: Callee, event: socket.List) -> bytes:
    event.check()
    return await callee.sessions.list(event.limit or sessions.DEFAULT_LIMIT, event.after)


async def _get(callee: Callee, event: socket.Get) -> bytes:
    return (await callee.sessions.retrieve(event.session))[0]


async def _update(callee: Callee, event: socket.Update) -> bytes:
    event.check()
    said = b""
    if (changes := event.of_answer()) is not None:
        id = event.response_id or callee.responses.running_in(event.session or "")
        said = msgspec.json.encode(await callee.responses.update(id, changes))
    if event.of_session() and event.session is not None:
        said, _ = await callee.sessions.update(event.session, event)
    return said


async def _rollback(callee: Callee, event: socket.Rollback) -> bytes:
    asked = SessionUpdate(head=event.to)
    return (await callee.sessions.update(event.session, asked, head_param="to"))[0]


async def _delete(callee: Callee, event: socket.Delete) -> bytes:
    return (await callee.sessions.delete(event.session))[0]


async def _append(callee: Callee, event: socket.Append) -> bytes:
    return (await callee.sessions.append(event.session, event))[0]


async def _messages(callee: Callee, event: socket.Messages) -> bytes:
    tree = bool(event.tree)
    return (await callee.sessions.messages(event.session, event.at, tree=tree))[0]


async def _fork(callee: Callee, event: socket.Fork) -> bytes:
    return (await callee.sessions.fork(event.session, event))[0]


async def _export(callee: Callee, event: socket.Export) -> bytes:
    return (await callee.sessions.export(event.session))[0]


async def _import(callee: Callee, event: socket.Import) -> bytes:
    return (await callee.sessions.import_(event))[0]


async def _draft(callee: Callee, event: socket.Draft) -> bytes:
    return await callee.drafting.change(event)


async def _cancel(callee: Callee, event: socket.Cancel) -> bytes:
    event.check()
    if event.response_id is not None:
        return msgspec.json.encode(await callee.responses.cancel(event.response_id))
    return (await callee.sessions.cancel(event.session or ""))[0]


CALLS: dict[str, Call] = {
    "session.create": Call(socket.Create, (sessions.Session,), _create, _new_session),
    "session.list": Call(socket.List, (sessions.SessionList,), _list, _at_once),
    "session.get": Call(socket.Get, (sessions.Session,), _get, _session),
    "session.update": Call(socket.Update, (sessions.Session, ResponseObject), _update, _update_key),
    "session.rollback": Call(socket.Rollback, (sessions.Session,), _rollback, _session),
    "session.delete": Call(socket.Delete, (sessions.SessionDeleted,), _delete, _at_once),
    "session.append": Call(socket.Append, (sessions.SessionMessageList,), _append, _session),
    "session.messages": Call(socket.Messages, (sessions.SessionMessageList,), _messages, _session),
    "session.fork": Call(socket.Fork, (sessions.Session,), _fork, _session),
    "session.export": Call(socket.Export, (sessions.SessionExport,), _export, _session),
    "session.import": Call(socket.Import, (sessions.Session,), _import, _new_session),
    "session.cancel": Call(
        socket.Cancel, (sessions.SessionCancelled, ResponseObject), _cancel, _at_once
    ),
    "session.draft": Call(socket.Draft, (SessionDraft,), _draft, _draft_key),
}
