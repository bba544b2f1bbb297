"""POST /v1/sessions/{session_id}/turns: say something in a session, anywhere in its tree."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import msgspec
from aiohttp import web
from msgspec import UnsetType

from lmserve.errors import InvalidField, SessionBusy
from lmserve.protocol.common import UsageInfo
from lmserve.protocol.encode import DONE
from lmserve.protocol.sessions import message_id
from lmserve.protocol.turns import SessionTurn, TurnBody, TurnEncoder, TurnHead
from lmserve.server import body, sse
from lmserve.server.keys import SESSIONS, SETTINGS
from lmserve.server.routes import session_operations as operations
from lmserve.server.routes.route import Route, json_response
from lmserve.server.routes.session_views import (
    SESSION_HEADER,
    message,
    naming,
    place_or_head,
    renaming,
    session_key,
    session_message,
)
from lmserve.service.generate import collect
from lmserve.service.sessions import Node, SessionKey, Turn
from lmserve.types import Done, TextDelta


async def turns(request: web.Request) -> web.StreamResponse:
    key = session_key(request)
    async with body.reading(request, TurnBody) as asked:
        asked.check()
        turn = await _begin(request, asked, key)
    with turn.generation.lease():
        return await (_stream if asked.stream else _whole)(request, turn, key)


async def _begin(request: web.Request, asked: TurnBody, key: SessionKey) -> Turn:
    """Waits for the session's turn and starts the answer. No await may follow before its lease."""
    sessions = request.app[SESSIONS]
    wanted = asked.to_generate(key.owner)
    after = await _place(request, asked, key)
    with naming(asked.after, "after"), renaming("input"):
        return await sessions.turn(key, wanted, keep=True, after=after, must_exist=True)


async def _place(request: web.Request, asked: TurnBody, key: SessionKey) -> int | None | UnsetType:
    """What the turn follows."""
    if asked.edit is not None:
        return (await _node(request, key, asked.edit, "edit")).parent
    if asked.regenerate is None:
        return place_or_head(asked.after, "after")
    answer = await _node(request, key, asked.regenerate, "regenerate")
    if answer.message["role"] != "assistant":
        raise InvalidField(
            f"regenerate is {asked.regenerate}, which is no answer: name one of the assistant's",
            param="regenerate",
        )
    return answer.parent


async def _node(request: web.Request, key: SessionKey, id: str, param: str) -> Node:
    with naming(id, param):
        return await request.app[SESSIONS].node(key, message(id, param))


async def _whole(request: web.Request, turn: Turn, key: SessionKey) -> web.StreamResponse:
    _, done = await collect(turn.generation)
    answer = await _ended(turn, key, done)
    response = json_response(msgspec.json.encode(answer))
    response.headers[SESSION_HEADER] = key.id
    return await sse.send_whole(request, response, request.app[SETTINGS].server.write_timeout_s)


async def _stream(request: web.Request, turn: Turn, key: SessionKey) -> web.StreamResponse:
    generation = turn.generation
    encoder = TurnEncoder(TurnHead(key.id, generation.model, generation.created))
    return await sse.send(
        request,
        _events(turn, key, encoder),
        request.app[SETTINGS].server.write_timeout_s,
        lambda write: generation.follow(lambda delta: write(encoder.delta(delta.text))),
        end_with=lambda error: encoder.failed(error) + DONE,
        late=lambda: {SESSION_HEADER: key.id},
    )


async def _events(turn: Turn, key: SessionKey, encoder: TurnEncoder) -> AsyncGenerator[bytes, None]:
    """One event a step; then the last, once the turn is kept."""
    yield encoder.started()
    async for event in turn.generation.events():
        if isinstance(event, TextDelta):
            yield encoder.delta(event.text)
        else:
            yield encoder.completed(await _ended(turn, key, event)) + DONE


async def _ended(turn: Turn, key: SessionKey, done: Done) -> SessionTurn:
    """The turn as it is kept. Raises SessionBusy where its session was ended with it."""
    await turn.settled()
    if turn.answer is None:
        raise SessionBusy(f"session {key.id} was ended while it was being answered")
    answer = session_message(turn.answer)
    return SessionTurn(
        id=answer.id,
        session=key.id,
        model=turn.generation.model,
        created_at=turn.generation.created,
        input=[message_id(number) for number in turn.input_ids],
        message=answer,
        finish_reason=done.finish_reason,
        usage=UsageInfo.of(done.usage),
    )


ROUTES = [Route("POST", "/v1/sessions/{session_id}/turns", turns, operations.TURN)]
