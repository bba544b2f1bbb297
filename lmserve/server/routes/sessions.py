"""/v1/sessions: conversations that are kept, as trees of messages. Answers: `turns`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from lmserve.edge.keyring import OWNER
from lmserve.errors import InvalidField, SessionNotFound
from lmserve.protocol import sessions as wire
from lmserve.server import body
from lmserve.server.keys import SESSIONS
from lmserve.server.routes import session_operations as operations
from lmserve.server.routes.route import Route, json_response
from lmserve.server.routes.session_views import (
    SESSION_HEADER,
    aside,
    message,
    message_list,
    naming,
    place,
    place_or_head,
    renaming,
    session,
    session_key,
    within,
)
from lmserve.service.sessions import SessionInfo, SessionKey


async def create(request: web.Request) -> web.Response:
    async with body.reading(request, wire.SessionCreate) as asked:
        asked.check()
        sessions, key = request.app[SESSIONS], _new_key(request, asked.id)
        info = await sessions.create(key, title=asked.title or None, messages=asked.plain())
    return _say(session(info), key.id)


async def list_(request: web.Request) -> web.Response:
    text = request.query.get("limit", str(wire.DEFAULT_LIMIT))
    limit = wire.whole_number(text, "limit", 1, wire.MAX_LIMIT)
    after = request.query.get("after") or None
    try:
        infos, has_more = await request.app[SESSIONS].list(request[OWNER], limit=limit, after=after)
    except SessionNotFound as error:
        error.param = "after"
        raise
    return json_response(msgspec.json.encode(_page(infos, has_more)))


async def retrieve(request: web.Request) -> web.Response:
    key = session_key(request)
    return _say(session(await request.app[SESSIONS].info(key)), key.id)


async def update(request: web.Request) -> web.Response:
    key = session_key(request)
    async with body.reading(request, wire.SessionUpdate) as asked:
        head = asked.head
        title = UNSET if asked.title is None else asked.title or None
        to = head if isinstance(head, UnsetType | None) else place(head, "head")
        with naming(head or None, "head"):
            info = await request.app[SESSIONS].update(key, title=title, head=to)
    return _say(session(info), key.id)


async def delete(request: web.Request) -> web.Response:
    key = session_key(request)
    await request.app[SESSIONS].delete(key)
    return _say(wire.SessionDeleted(id=key.id), key.id)


async def list_messages(request: web.Request) -> web.Response:
    key, sessions = session_key(request), request.app[SESSIONS]
    at = request.query.get("at")
    whole = wire.truth(request.query.get("tree", "false"), "tree")
    if whole and at is not None:
        raise InvalidField("at goes only without tree: leave out one of them", param="at")
    if whole:
        nodes = await sessions.nodes(key)
    else:
        with naming(at, "at"):
            nodes = await sessions.line(key, None if at is None else message(at, "at"))
    return _say(await message_list(nodes), key.id)


async def append(request: web.Request) -> web.Response:
    key, sessions = session_key(request), request.app[SESSIONS]
    async with body.reading(request, wire.SessionAppend) as asked:
        after = place_or_head(asked.after, "after")
        with naming(asked.after, "after"), renaming("messages"):
            added = await sessions.add(key, asked.plain(), after=after)
    return _say(await message_list(added), key.id)


async def fork(request: web.Request) -> web.Response:
    key, sessions = session_key(request), request.app[SESSIONS]
    async with body.reading(request, wire.SessionFork) as asked:
        asked.check()
        at = None if asked.at is None else message(asked.at, "at")
        new = _new_key(request, asked.id)
        with naming(asked.at, "at"):
            info = await sessions.fork(key, new, at=at, title=asked.title)
    return _say(session(info), new.id)


async def cancel(request: web.Request) -> web.Response:
    """At once: it waits for no turn."""
    key, sessions = session_key(request), request.app[SESSIONS]
    cancelled = sessions.cancel(key)
    if not cancelled:
        await sessions.info(key)  # a session there must be
    return _say(wire.SessionCancelled(cancelled=cancelled), key.id)


async def export(request: web.Request) -> web.Response:
    key = session_key(request)
    exported = await request.app[SESSIONS].export(key)
    encode = partial(msgspec.json.encode, exported)
    return _say(await aside(len(exported["messages"]), encode), key.id)


async def import_(request: web.Request) -> web.Response:
    async with body.reading(request, wire.SessionImport) as asked:
        asked.check()
        key = _new_key(request, asked.id)
        exported = await aside(len(asked.session.messages), asked.session.plain)
        with within("session"):
            info = await request.app[SESSIONS].import_(key, exported)
    return _say(session(info), key.id)


def _new_key(request: web.Request, id: str | None) -> SessionKey:
    return SessionKey(request[OWNER], id or request.app[SESSIONS].new_session_id())


def _page(infos: Sequence[SessionInfo], has_more: bool) -> wire.SessionList:
    return wire.SessionList(
        data=[session(info) for info in infos],
        first_id=infos[0].id if infos else None,
        last_id=infos[-1].id if infos else None,
        has_more=has_more,
    )


def _say(answer: msgspec.Struct | bytes, id: str) -> web.Response:
    text = answer if isinstance(answer, bytes) else msgspec.json.encode(answer)
    response = json_response(text)
    response.headers[SESSION_HEADER] = id
    return response


ROUTES = [
    Route("POST", "/v1/sessions", create, operations.CREATE),
    Route("GET", "/v1/sessions", list_, operations.LIST),
    Route("POST", "/v1/sessions/import", import_, operations.IMPORT),  # before {session_id}
    Route("GET", "/v1/sessions/{session_id}", retrieve, operations.RETRIEVE),
    Route("POST", "/v1/sessions/{session_id}", update, operations.UPDATE),
    Route("DELETE", "/v1/sessions/{session_id}", delete, operations.DELETE),
    Route("GET", "/v1/sessions/{session_id}/messages", list_messages, operations.MESSAGES),
    Route("POST", "/v1/sessions/{session_id}/messages", append, operations.APPEND),
    Route("POST", "/v1/sessions/{session_id}/fork", fork, operations.FORK),
    Route("POST", "/v1/sessions/{session_id}/cancel", cancel, operations.CANCEL),
    Route("GET", "/v1/sessions/{session_id}/export", export, operations.EXPORT),
]
