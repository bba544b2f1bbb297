"""The application, composed: nothing starts and nothing listens here."""

from __future__ import annotations

from collections.abc import AsyncIterator

import orjson
from aiohttp import web

from lmserve import __version__
from lmserve.bridge.handle import EngineHandle
from lmserve.protocol import openapi
from lmserve.server import keys, middlewares
from lmserve.server.routes.pages import PAGES, pages
from lmserve.server.routes.table import TABLE
from lmserve.service.admission import BodyBytes
from lmserve.service.generate import Service
from lmserve.service.metrics import Metrics
from lmserve.settings import Settings


def build_app(settings: Settings, handle: EngineHandle) -> web.Application:
    """The application over this engine, which starts and ends with it."""
    app = web.Application(
        middlewares=[middlewares.request_id, middlewares.errors],
        client_max_size=settings.server.max_body_bytes,
    )
    app[keys.SETTINGS] = settings
    app[keys.HANDLE] = handle
    app[keys.METRICS] = metrics = Metrics(handle, settings)
    app[keys.SERVICE] = Service(handle, settings, metrics)
    app[keys.BODY_BYTES] = BodyBytes()
    app[keys.OPENAPI] = orjson.dumps(
        openapi.document(((r.method, r.path, r.operation) for r in TABLE), __version__)
    )
    app[PAGES] = {}
    for route in TABLE:
        if route.method == "GET":
            app.router.add_get(route.path, route.handler)  # and HEAD
        else:
            app.router.add_route(route.method, route.path, route.handler)
    app.on_response_prepare.append(middlewares.stamp)
    app.cleanup_ctx.extend((pages, engine))
    app.on_shutdown.append(drain)
    return app


async def engine(app: web.Application) -> AsyncIterator[None]:
    """The engine starts with the application and is closed after its last handler."""
    handle = app[keys.HANDLE]
    await handle.start()
    yield
    app[keys.SERVICE].close()
    await handle.close()


async def drain(app: web.Application) -> None:
    """Lets running answers finish, until the deadline; ends the rest."""
    await app[keys.SERVICE].drain(app[keys.SETTINGS].server.drain_timeout_s)
