"""/v1/responses: answers that are kept, made in the background or read while they are made."""

from __future__ import annotations

import msgspec
from aiohttp import web

from lmserve.edge.keyring import OWNER
from lmserve.errors import InvalidField
from lmserve.protocol import sessions as wire
from lmserve.protocol.responses.changes import ResponseSteer, ResponseUpdate
from lmserve.protocol.responses.requests import ResponseCreate, ResponseFields
from lmserve.server import body, sse
from lmserve.server.cursor import cursor
from lmserve.server.idempotency import HEADER as IDEMPOTENCY_HEADER
from lmserve.server.idempotency import idempotency, key_from
from lmserve.server.keys import ANSWERS, SESSIONS
from lmserve.server.responses.calls import ResponseCalls
from lmserve.server.responses.views import response_of
from lmserve.server.routes import response_operations as operations
from lmserve.server.routes.route import Route, json_response
from lmserve.server.routes.session_views import SESSION_HEADER
from lmserve.service.answers.answers import Answer
from lmserve.service.answers.records import Record


async def create(request: web.Request) -> web.StreamResponse:
    async with body.reading(request, ResponseCreate) as asked:
        answer = await begin(request, asked)
    return await tell(request, asked, answer)


async def begin(request: web.Request, asked: ResponseFields, session: str | None = None) -> Answer:
    """No await may follow before `tell`, which reads it."""
    key = await idempotency(request, asked)
    with key_from(IDEMPOTENCY_HEADER):
        return await _calls(request).begin(asked, session, idempotency=key)


async def tell(request: web.Request, asked: ResponseFields, answer: Answer) -> web.StreamResponse:
    """As it is made, when it is made, or at once in the background."""
    record = answer.record
    if asked.stream:
        headers = {SESSION_HEADER: record.session}
        return await sse.send_stream(request, answer.stream, headers=headers)
    if not asked.background:
        with answer.stream.reading(answer.stream.next - 1):  # whoever waits reads it
            record = await answer.ended()
    return await _response(record)


async def retrieve(request: web.Request) -> web.StreamResponse:
    answers, id = request.app[ANSWERS], _id(request)
    if not wire.truth(request.query.get("stream", "false"), "stream"):
        return await _response(await answers.record(request[OWNER], id))
    starting_after = cursor(request)
    record = await answers.record(request[OWNER], id)
    stream = await answers.stream(request[OWNER], id)
    return await sse.send_stream(
        request,
        stream,
        starting_after=starting_after,
        headers={SESSION_HEADER: record.session},
    )


async def update(request: web.Request) -> web.Response:
    async with body.reading(request, ResponseUpdate) as asked:
        return _say(await _calls(request).update(_id(request), asked))


async def delete(request: web.Request) -> web.Response:
    return _say(await _calls(request).delete(_id(request)))


async def cancel(request: web.Request) -> web.Response:
    return _say(await _calls(request).cancel(_id(request)))


async def steer(request: web.Request) -> web.Response:
    async with body.reading(request, ResponseSteer) as asked:
        return _say(await _calls(request).steer(_id(request), asked))


async def input_items(request: web.Request) -> web.Response:
    text = request.query.get("limit", str(wire.DEFAULT_LIMIT))
    limit = wire.whole_number(text, "limit", 1, wire.MAX_LIMIT)
    order = request.query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InvalidField(f"order is {order[:50]!r}: it must be asc or desc", param="order")
    listed = await _calls(request).input_items(
        _id(request),
        limit=limit,
        after=request.query.get("after") or None,
        ascending=order == "asc",
    )
    return _say(listed)


def _calls(request: web.Request) -> ResponseCalls:
    return ResponseCalls(request.app[ANSWERS], request.app[SESSIONS], request[OWNER])


def _id(request: web.Request) -> str:
    return request.match_info["response_id"]


async def _response(record: Record) -> web.Response:
    response = _say(await response_of(record))
    response.headers[SESSION_HEADER] = record.session
    response.headers[sse.STREAM_HEADER] = record.id
    return response


def _say(answer: msgspec.Struct) -> web.Response:
    return json_response(msgspec.json.encode(answer))


ROUTES = [
    Route("POST", "/v1/responses", create, operations.CREATE),
    Route("GET", "/v1/responses/{response_id}", retrieve, operations.RETRIEVE),
    Route("POST", "/v1/responses/{response_id}", update, operations.UPDATE),
    Route("DELETE", "/v1/responses/{response_id}", delete, operations.DELETE),
    Route("POST", "/v1/responses/{response_id}/cancel", cancel, operations.CANCEL),
    Route("POST", "/v1/responses/{response_id}/steer", steer, operations.STEER),
    Route("GET", "/v1/responses/{response_id}/input_items", input_items, operations.INPUT_ITEMS),
]
