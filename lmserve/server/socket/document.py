"""GET /asyncapi.json: every event of the WebSocket, with its schema."""

from __future__ import annotations

from functools import cache

import orjson
from aiohttp import web

from lmserve import __version__
from lmserve.protocol import asyncapi, socket
from lmserve.protocol.asyncapi import Asked
from lmserve.protocol.drafts import DraftReady
from lmserve.protocol.openapi import Operation
from lmserve.protocol.socket_events import Resumed
from lmserve.server.routes.route import Route, json_response
from lmserve.server.socket.calls import CALLS

# Those that more than one event answers.
_MORE = (
    Asked("session.authenticate", socket.Authenticate),
    Asked("response.create", socket.CreateResponse),
    Asked("response.steer", socket.SteerResponse),
    Asked("session.resume", socket.Resume, (Resumed,)),
)


@cache
def document() -> bytes:
    asked = [*_MORE, *(Asked(name, call.event, call.results) for name, call in CALLS.items())]
    told = [("session.draft.ready", DraftReady)]
    return orjson.dumps(asyncapi.document(asked, __version__, told))


async def serve(request: web.Request) -> web.Response:
    return json_response(document())


ROUTES = [
    Route(
        "GET",
        "/asyncapi.json",
        serve,
        Operation(
            id="asyncapi",
            summary="The events of the WebSocket",
            tag="operation",
            content_type="application/json",
        ),
        part="docs",
    )
]
