"""GET /v1/responses, upgraded to a WebSocket: the client's is ended here, and others are opened to
the nodes that it needs."""

from __future__ import annotations

from aiohttp import WSCloseCode, web

from lmserve.distributor.auth import key_of
from lmserve.distributor.headers import to_node
from lmserve.distributor.keys import METRICS, PROXY, SESSION, SETTINGS, SOCKETS
from lmserve.distributor.proxy import Proxy
from lmserve.distributor.socket.connection import Backend, Connection
from lmserve.distributor.socket.upstream import NotOpened, Opener
from lmserve.distributor.wish import Wish
from lmserve.edge.cross_site import crosses
from lmserve.edge.keyring import KEYRING, Keyring
from lmserve.edge.middlewares import REQUEST_ID
from lmserve.edge.refusal import check_sockets
from lmserve.edge.socket import authentication
from lmserve.edge.socket.writer import Writer
from lmserve.errors import RequestError, Unauthorized
from lmserve.protocol.socket import SUBPROTOCOL
from lmserve.protocol.socket_events import authenticated_event, error_event

HEARTBEAT_S = 30.0  # a peer that does not answer a ping half as long after is gone
CLOSE_S = 5.0  # a client gets this long to say goodbye, too

_OURS = (  # of the client's connection alone
    "Authorization",
    "X-Api-Key",
    "Sec-WebSocket-Key",
    "Sec-WebSocket-Version",
    "Sec-WebSocket-Protocol",
    "Sec-WebSocket-Extensions",
    "Origin",
    "Sec-Fetch-Site",
    "Sec-Fetch-Mode",
    "Sec-Fetch-Dest",
)


async def connect(request: web.Request) -> web.StreamResponse:
    app, settings, proxy = request.app, request.app[SETTINGS], request.app[PROXY]
    proxy.check(request)
    protocols = authentication.offered(request)
    keyring = app[KEYRING]
    owner = authentication.by_headers(request, keyring)
    socket = web.WebSocketResponse(
        protocols=(SUBPROTOCOL,),
        timeout=CLOSE_S,
        heartbeat=HEARTBEAT_S,
        compress=False,  # no bombs, and no memory for each connection
        max_msg_size=settings.max_body_bytes,
        decode_text=False,
    )
    if not socket.can_prepare(request):
        if owner is None:
            raise authentication.first()
        raise RequestError(
            "this is a WebSocket: connect with one; or POST here for one answer over HTTP"
        )
    check_sockets(len(app[SOCKETS]), settings.max_sockets)
    opener = _opener(request, proxy)
    if crosses(request):
        await _ask_node(request, proxy, opener)
    stream = await socket.prepare(request)
    writer = Writer(request, socket, stream)
    backend = Backend(
        proxy.dispatch, proxy.bodies, app[METRICS], app[SOCKETS], lambda: proxy.stopping
    )
    connection = Connection(socket, writer, opener, backend)
    with app[SOCKETS].holding(socket, connection.settled):
        opener.api_key = key_of(request)
        if opener.api_key or await _authenticated(socket, writer, keyring, protocols, opener):
            app[SOCKETS].belongs(socket, owner or keyring.owner_of(opener.api_key) or "")
            await connection.serve()
    return socket


def _opener(request: web.Request, proxy: Proxy) -> Opener:
    headers = to_node(request, request[REQUEST_ID], proxy.name)
    for name in _OURS:
        headers.popall(name, None)
    return Opener(request.app[SESSION], headers)


async def _ask_node(request: web.Request, proxy: Proxy, opener: Opener) -> None:
    """Another site's page: a node knows whether it may. Raises CrossSite."""
    given = {name: request.headers.get(name) for name in ("Origin", "Sec-Fetch-Site")}
    node = proxy.dispatch.choose(Wish())
    try:
        asked = await opener.open(node, {name: value for name, value in given.items() if value})
    except NotOpened as error:
        raise proxy.gone(node, str(error)) from None
    await asked.close()


async def _authenticated(
    socket: web.WebSocketResponse[bool],
    writer: Writer,
    keyring: Keyring,
    protocols: list[str],
    opener: Opener,
) -> bool:
    """Takes the key, where one comes. False: the connection is closed."""
    try:
        if keys := authentication.keys_of(protocols):
            if keyring.asks:
                authentication.by_subprotocol(protocols, keyring)
            opener.api_key = keys[0]
        elif keyring.asks:
            known = await authentication.by_first_event(socket, keyring)
            if known is None:
                return False
            opener.api_key = known[1].api_key
            await writer.write(authenticated_event(known[1].event_id))
        return True
    except RequestError as error:
        told: RequestError = error
    except TimeoutError:
        told = Unauthorized(
            f"no key came within {authentication.PATIENCE_S:.0f} s: send session.authenticate first"
        )
    await writer.write(error_event(told))
    await socket.close(code=WSCloseCode.POLICY_VIOLATION, message=b"not authenticated")
    return False
