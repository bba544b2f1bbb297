"""API keys: they guard all but `GET /health`, the nodes' own routes too."""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web
from aiohttp.typedefs import Middleware

from lmserve.edge.keyring import OPEN, OWNER, Keyring, brought
from lmserve.edge.middlewares import Handler


def keys_required(keys: Sequence[str]) -> Middleware:
    keyring = Keyring(keys)

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if _is_preflight(request):
            request[OWNER] = ""
            return await handler(request)
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
