"""GET /v1/responses, upgraded to a WebSocket: conversations over one connection."""

from __future__ import annotations

from aiohttp import WSCloseCode, web

from lmserve.edge.keyring import KEYRING
from lmserve.edge.refusal import check_sockets
from lmserve.edge.socket import authentication
from lmserve.edge.socket.writer import Writer
from lmserve.errors import RequestError, Unauthorized
from lmserve.protocol.openapi import Operation
from lmserve.protocol.socket import SUBPROTOCOL
from lmserve.protocol.socket_events import authenticated_event, error_event
from lmserve.server.keys import BODY_BYTES, SETTINGS
from lmserve.server.routes.route import Route
from lmserve.server.socket import document
from lmserve.server.socket.connection import Connection
from lmserve.server.socket.sockets import CLOSE_S, SOCKETS

HEARTBEAT_S = 30.0  # a peer that does not answer a ping half as long after is gone


async def connect(request: web.Request) -> web.StreamResponse:
    app, settings = request.app, request.app[SETTINGS].server
    socket = web.WebSocketResponse(
        protocols=(SUBPROTOCOL,),
        timeout=CLOSE_S,
        heartbeat=HEARTBEAT_S,
        compress=False,  # no bombs, and no memory for each connection
        max_msg_size=settings.max_body_bytes,
        decode_text=False,
    )
    protocols = authentication.offered(request)
    owner = authentication.by_headers(request, app[KEYRING])
    if not socket.can_prepare(request):
        if owner is None:
            raise authentication.first()
        raise RequestError(
            "this is a WebSocket: connect with one; or POST here for one answer over HTTP"
        )
    check_sockets(len(app[SOCKETS]), app[SETTINGS].limits.max_sockets)
    stream = await socket.prepare(request)
    writer = Writer(request, socket, stream)
    with app[SOCKETS].holding(socket), app[BODY_BYTES].counting() as count:
        if owner is None:
            owner = await _authenticated(request, socket, writer, protocols)
        if owner is not None:
            await Connection(request, owner, socket, writer, count).serve()
    return socket


async def _authenticated(
    request: web.Request,
    socket: web.WebSocketResponse[bool],
    writer: Writer,
    protocols: list[str],
) -> str | None:
    """Whose key it is. None: the connection is closed."""
    keyring = request.app[KEYRING]
    try:
        owner = authentication.by_subprotocol(protocols, keyring)
        if owner is not None:
            return owner
        known = await authentication.by_first_event(socket, keyring)
        if known is None:
            return None
        owner, asked = known
        await writer.write(authenticated_event(asked.event_id))
        return owner
    except RequestError as error:
        told: RequestError = error
    except TimeoutError:
        told = Unauthorized(
            f"no key came within {authentication.PATIENCE_S:.0f} s: send session.authenticate first"
        )
    await writer.write(error_event(told))
    await socket.close(code=WSCloseCode.POLICY_VIOLATION, message=b"not authenticated")
    return None


ROUTES = [
    *document.ROUTES,
    Route(
        "GET",
        "/v1/responses",
        connect,
        Operation(
            id="connect_responses",
            summary="Conversations over one WebSocket",
            tag="responses",
            description="Upgraded to a WebSocket. `/asyncapi.json` describes its events. The API "
            "key comes in a header, as the subprotocol `lmserve.key.<base64url>` beside "
            "`lmserve`, or in the first event, `session.authenticate`.",
            content_type="",
            statuses=(400, 403, 503),
        ),
        open=True,
        acts=True,
    ),
]
