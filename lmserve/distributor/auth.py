"""API keys: they guard all but `GET /health`, the nodes' own routes too. Which pages may have an
answer is for the nodes to say; none may change what nodes there are."""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web
from aiohttp.typedefs import Middleware

from lmserve.edge.cross_site import crosses
from lmserve.edge.keyring import OPEN, OWNER, Keyring, brought
from lmserve.edge.middlewares import Handler
from lmserve.errors import CrossSite


def keys_required(keys: Sequence[str]) -> Middleware:
    keyring = Keyring(keys)

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if _is_preflight(request):
            request[OWNER] = ""
            return await handler(request)
        if crosses(request) and request.path.startswith("/nodes/"):
            raise CrossSite("another web page may not call this")
        return await keyring.guard(request, handler)

    return check


def open_health(app: web.Application) -> None:
    """Lets those ask who run the distributor and have no key."""
    routes = app.router.routes()
    app[OPEN] = {each for each in routes if each.resource and each.resource.canonical == "/health"}


def _is_preflight(request: web.Request) -> bool:
    """What browsers ask before they send a key. The nodes know which pages may call."""
    return request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers


def key_of(request: web.Request) -> str:
    """The key of this call, whoever knows it."""
    return next(iter(brought(request)), "")
