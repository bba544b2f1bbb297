"""/v1/sessions: conversations that are kept, as trees of messages. Answers: `turns`."""

from __future__ import annotations

from aiohttp import web

from lmserve.edge.keyring import OWNER
from lmserve.protocol import sessions as wire
from lmserve.server import body
from lmserve.server.keys import ANSWERS, SESSIONS
from lmserve.server.routes import session_operations as operations
from lmserve.server.routes.route import Route, json_response
from lmserve.server.routes.session_views import SESSION_HEADER, session_key
from lmserve.server.session_calls import Said, SessionCalls


async def create(request: web.Request) -> web.Response:
    async with body.reading(request, wire.SessionCreate) as asked:
        return _say(await _calls(request).create(asked))


async def list_(request: web.Request) -> web.Response:
    text = request.query.get("limit", str(wire.DEFAULT_LIMIT))
    limit = wire.whole_number(text, "limit", 1, wire.MAX_LIMIT)
    after = request.query.get("after") or None
    return json_response(await _calls(request).list(limit, after))


async def retrieve(request: web.Request) -> web.Response:
    return _say(await _calls(request).retrieve(_id(request)))


async def update(request: web.Request) -> web.Response:
    id = _id(request)
    async with body.reading(request, wire.SessionUpdate) as asked:
        return _say(await _calls(request).update(id, asked))


async def delete(request: web.Request) -> web.Response:
    return _say(await _calls(request).delete(_id(request)))


async def list_messages(request: web.Request) -> web.Response:
    id, at = _id(request), request.query.get("at")
    tree = wire.truth(request.query.get("tree", "false"), "tree")
    return _say(await _calls(request).messages(id, at, tree=tree))


async def append(request: web.Request) -> web.Response:
    id = _id(request)
    async with body.reading(request, wire.SessionAppend) as asked:
        return _say(await _calls(request).append(id, asked))


async def fork(request: web.Request) -> web.Response:
    id = _id(request)
    async with body.reading(request, wire.SessionFork) as asked:
        return _say(await _calls(request).fork(id, asked))


async def cancel(request: web.Request) -> web.Response:
    return _say(await _calls(request).cancel(_id(request)))


async def export(request: web.Request) -> web.Response:
    return _say(await _calls(request).export(_id(request)))


async def import_(request: web.Request) -> web.Response:
    async with body.reading(request, wire.SessionImport) as asked:
        return _say(await _calls(request).import_(asked))


def _calls(request: web.Request) -> SessionCalls:
    return SessionCalls(request.app[SESSIONS], request.app[ANSWERS], request[OWNER])


def _id(request: web.Request) -> str:
    """The session that the path names. Raises SessionNotFound."""
    return session_key(request).id


def _say(said: Said) -> web.Response:
    response = json_response(said[0])
    response.headers[SESSION_HEADER] = said[1]
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
