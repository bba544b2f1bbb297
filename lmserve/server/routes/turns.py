"""POST /v1/sessions/{session_id}/turns: say something in a session, anywhere in its tree."""

from __future__ import annotations

from aiohttp import web

from lmserve.protocol.turns import TurnBody
from lmserve.server import body
from lmserve.server.routes import session_operations as operations
from lmserve.server.routes.responses import begin, tell
from lmserve.server.routes.route import Route
from lmserve.server.routes.session_views import session_key


async def turns(request: web.Request) -> web.StreamResponse:
    session = session_key(request).id
    async with body.reading(request, TurnBody) as asked:
        answer = await begin(request, asked, session)
    return await tell(request, asked, answer)


ROUTES = [Route("POST", "/v1/sessions/{session_id}/turns", turns, operations.TURN)]
