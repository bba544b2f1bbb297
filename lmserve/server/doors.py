"""Who gets in, and by which door: the one for everybody or the administrators' own.

name ─► another page's doing? ─► key ─► scope ─► handler
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

from aiohttp import web

from lmserve.edge import middlewares
from lmserve.edge.cross_site import ACTING
from lmserve.edge.hosts import Hosts
from lmserve.edge.keyring import KEYRING, OPEN, SCOPE, Keyring
from lmserve.edge.reload import RELOADS
from lmserve.server.cors import Cors
from lmserve.server.routes.route import Route
from lmserve.server.routes.table import TABLE
from lmserve.server.socket.sockets import SOCKETS
from lmserve.settings import Settings
from lmserve.types import KeyLimits

HEALTH = "/health"  # behind both doors


def keyring_of(settings: Settings) -> Keyring:
    limits = settings.limits
    return Keyring(
        settings.server.api_keys,
        admin_keys=settings.access.admin_keys,
        key_file=settings.access.key_file,
        limits=KeyLimits(
            limits.max_key_requests,
            limits.key_requests_per_minute,
            limits.key_tokens_per_minute,
        ),
    )


def application(
    settings: Settings, keyring: Keyring, server_name: str, routes: Iterable[Route]
) -> web.Application:
    """These routes behind a door of this address, and nothing else yet."""
    cors = Cors(settings.server)
    hosts = Hosts(server_name, settings.access.allowed_hosts, has_keys=keyring.asks)
    app = web.Application(
        middlewares=[
            middlewares.request_id,
            middlewares.errors,
            hosts.guard,
            cors.preflight,
            cors.guard,
            keyring.guard,
            middlewares.expect,
        ],
        client_max_size=settings.server.max_body_bytes,
    )
    app[KEYRING] = keyring
    app[OPEN], app[ACTING], app[SCOPE] = set(), set(), {}
    for route in routes:
        _add(app, route)
    app.on_response_prepare.extend((middlewares.stamp, cors.stamp))
    return app


def _add(app: web.Application, route: Route) -> None:
    resource = app.router.add_resource(route.path)
    reads = route.method == "GET" and not route.acts
    for method in ("GET", "HEAD") if reads else (route.method,):
        added = resource.add_route(method, route.handler, expect_handler=middlewares.no_expect)
        app[SCOPE][added] = route.scope
        if route.open:
            app[OPEN].add(added)
        if not reads:
            app[ACTING].add(added)


def served(settings: Settings) -> list[Route]:
    """Behind the door for everybody: the table, less the parts that are turned off or elsewhere."""
    apart = settings.access.admin_port is not None
    return [route for route in _on(settings) if route.scope == "use" or not apart]


def administered(settings: Settings) -> list[Route]:
    """Behind the administrators' door."""
    return [route for route in _on(settings) if route.scope != "use" or route.path == HEALTH]


def _on(settings: Settings) -> list[Route]:
    parts = {None: True, "docs": settings.server.docs, "metrics": settings.server.metrics}
    return [route for route in TABLE if parts[route.part]]


def admin_name(settings: Settings) -> str:
    return settings.access.admin_name or "127.0.0.1"


def admin_application(app: web.Application, settings: Settings) -> web.Application:
    """The administrators' door to what `app` serves, which starts before it and ends after it."""
    name, keyring = admin_name(settings), app[KEYRING]
    admin = application(settings, keyring, name, administered(settings))
    for key in app:
        if key not in admin:
            admin[key] = app[key]
    admin[middlewares.HAS_INDEX] = False
    return admin


async def access(app: web.Application) -> AsyncIterator[None]:
    """Reads the keys, and again when they change; then ends what they no longer open."""
    app[RELOADS].after.append(lambda: app[SOCKETS].dismiss(app[KEYRING].knows))
    async with app[RELOADS].running():
        yield
