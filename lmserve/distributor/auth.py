"""API keys: they guard all but `GET /health` and the WebSocket, which asks by itself; the nodes'
own routes too. Which pages may have an answer is for the nodes to say; none may change what nodes
there are, or end one."""

from __future__ import annotations

from aiohttp import web
from aiohttp.typedefs import Middleware

from lmserve.edge.cross_site import ACTING, crosses
from lmserve.edge.keyring import OPEN, OWNER, SCOPE, Keyring, brought
from lmserve.edge.middlewares import Handler
from lmserve.errors import CrossSite

NODES = "/nodes/"
TELLING = NODES + "status"
# Passed on, for whoever administers the nodes: these may know no keys themselves.
ADMINISTERED = ("/sleep", "/wakeup", "/is_sleeping", "/terminate")


def keys_required(keyring: Keyring) -> Middleware:
    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if _is_preflight(request):
            request[OWNER] = ""
            return await handler(request)
        if request.match_info.route in request.app[ACTING] and crosses(request):
            raise CrossSite("another web page may not call this")
        return await keyring.guard(request, handler)

    return check


def mark(app: web.Application, *open_paths: str) -> None:
    """Says of each route who may call it. The open ones ask for no key: it is told nothing there,
    or the key comes later."""
    app[OPEN], app[ACTING], app[SCOPE] = set(), set(), {}
    for route in app.router.routes():
        assert route.resource is not None
        path = route.resource.canonical
        if path in open_paths:
            app[OPEN].add(route)
        elif path == "/metrics":
            app[SCOPE][route] = "metrics"
        elif path.startswith(NODES) or path in ADMINISTERED:
            app[SCOPE][route] = "admin"
            if path != TELLING:
                app[ACTING].add(route)


def _is_preflight(request: web.Request) -> bool:
    """What browsers ask before they send a key. The nodes know which pages may call."""
    return request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers


def key_of(request: web.Request) -> str:
    """The key of this call, whoever knows it."""
    return next(iter(brought(request)), "")
