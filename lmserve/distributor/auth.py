"""API keys: they guard all but `GET /health` and the WebSocket, which asks by itself; the nodes'
own routes too. Which pages may have an answer is for the nodes to say; none may change what nodes
there are."""

from __future__ import annotations

from aiohttp import web
from aiohttp.typedefs import Middleware

from lmserve.edge.cross_site import crosses, foreign
from lmserve.edge.keyring import OPEN, OWNER, Keyring, brought
from lmserve.edge.middlewares import Handler
from lmserve.errors import CrossSite


def keys_required(keyring: Keyring) -> Middleware:
    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if _is_preflight(request):
            request[OWNER] = ""
            return await handler(request)
        # over plain HTTP, browsers tell of another page by its origin alone
        of_nodes = request.path.startswith("/nodes/")
        if of_nodes and (crosses(request) or foreign(request)):
            raise CrossSite("another web page may not call this")
        return await keyring.guard(request, handler)

    return check


def leave_open(app: web.Application, *paths: str) -> None:
    """These ask for no key: it is told nothing there, or the key comes later."""
    routes = app.router.routes()
    app[OPEN] = {each for each in routes if each.resource and each.resource.canonical in paths}


def _is_preflight(request: web.Request) -> bool:
    """What browsers ask before they send a key. The nodes know which pages may call."""
    return request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers


def key_of(request: web.Request) -> str:
    """The key of this call, whoever knows it."""
    return next(iter(brought(request)), "")
