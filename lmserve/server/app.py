"""The application, composed: nothing starts and nothing listens here."""

from __future__ import annotations

from collections.abc import AsyncIterator

import orjson
from aiohttp import web

from lmserve import __version__
from lmserve.bridge.handle import EngineHandle
from lmserve.edge import middlewares
from lmserve.edge.keyring import KEYRING, OPEN, Keyring
from lmserve.protocol import openapi
from lmserve.server import keys
from lmserve.server.batches.lines import BatchLines
from lmserve.server.cors import ACTING, Cors
from lmserve.server.responses.narrator import ResponseNarrator
from lmserve.server.routes.pages import PAGES, pages
from lmserve.server.routes.route import Route
from lmserve.server.routes.table import TABLE
from lmserve.server.socket.sockets import SOCKETS, Sockets
from lmserve.service.admission import BodyBytes
from lmserve.service.answers.answers import Answers
from lmserve.service.batches.batches import Batches
from lmserve.service.generate import Service
from lmserve.service.metrics import Metrics
from lmserve.service.sessions.sessions import Sessions
from lmserve.service.store import keys as store_keys
from lmserve.service.streams.resumable import Resumable
from lmserve.service.streams.streams import Streams
from lmserve.service.warm.drafts import Drafts
from lmserve.service.warm.warmth import Warmth
from lmserve.settings import ServerSettings, Settings


def build_app(settings: Settings, handle: EngineHandle) -> web.Application:
    """The application over this engine, which starts and ends with it."""
    keyring, cors = Keyring(settings.server.api_keys), Cors(settings.server)
    app = web.Application(
        middlewares=[
            middlewares.request_id,
            middlewares.errors,
            cors.preflight,
            cors.guard,
            keyring.guard,
            middlewares.expect,
        ],
        client_max_size=settings.server.max_body_bytes,
    )
    app[keys.SETTINGS] = settings
    app[keys.HANDLE] = handle
    app[keys.METRICS] = metrics = Metrics(handle, settings)
    app[keys.SERVICE] = service = Service(handle, settings, metrics)
    app[keys.WARMTH] = warmth = Warmth(handle, settings.warm, metrics)
    app[keys.SESSIONS] = sessions_ = Sessions(service, settings.sessions, warmth=warmth)
    app[keys.DRAFTS] = Drafts(service, sessions_, warmth, settings.warm)
    app[keys.STREAMS] = Streams(settings.streams)
    app[keys.RESUMABLE] = Resumable(app[keys.STREAMS], sessions_.ids)
    app[keys.ANSWERS] = Answers(service, sessions_, app[keys.STREAMS], ResponseNarrator)
    app[keys.BATCHES] = Batches(
        settings, sessions_.ids, metrics, BatchLines(app), lambda: service.at_leisure
    )
    app[keys.BODY_BYTES] = BodyBytes()
    app[SOCKETS] = Sockets(metrics)
    routes = served(settings.server)
    app[keys.OPENAPI] = orjson.dumps(
        openapi.document(((r.method, r.path, r.operation, r.open) for r in routes), __version__)
    )
    app[PAGES] = {}
    app[KEYRING] = keyring
    app[middlewares.HAS_INDEX] = settings.server.docs
    app[middlewares.ERROR_BODIES] = {r.path: r.error_body for r in routes if r.error_body}
    app[OPEN] = set()
    app[ACTING] = set()
    for route in routes:
        add(app, route)
    app.on_response_prepare.extend((middlewares.stamp, cors.stamp))
    app.cleanup_ctx.extend((pages, streams, sessions, engine, batches))
    app.on_shutdown.extend((stop_batches, drain, close_sockets))
    return app


def served(settings: ServerSettings) -> list[Route]:
    """The table, less the parts that are turned off."""
    parts = {None: True, "docs": settings.docs, "metrics": settings.metrics}
    return [route for route in TABLE if parts[route.part]]


def add(app: web.Application, route: Route) -> None:
    resource = app.router.add_resource(route.path)
    reads = route.method == "GET" and not route.acts
    for method in ("GET", "HEAD") if reads else (route.method,):
        added = resource.add_route(method, route.handler, expect_handler=middlewares.no_expect)
        if route.open:
            app[OPEN].add(added)
        if not reads:
            app[ACTING].add(added)


async def streams(app: web.Application) -> AsyncIterator[None]:
    """Closed after their producers."""
    yield
    await app[keys.RESUMABLE].close()
    app[keys.STREAMS].close()


async def sessions(app: web.Application) -> AsyncIterator[None]:
    """Closed after the engine, with which the last answers end."""
    await app[keys.SESSIONS].open()
    await app[keys.ANSWERS].open()
    yield
    await app[keys.ANSWERS].close()
    await app[keys.SESSIONS].close()


async def engine(app: web.Application) -> AsyncIterator[None]:
    """The engine starts with the application and is closed after its last handler."""
    handle, warmth, keeper = app[keys.HANDLE], app[keys.WARMTH], app[keys.SESSIONS].keeper
    folder = await keeper.run(store_keys.folder)
    await warmth.open(folder, lambda: keeper.run(store_keys.living))
    await handle.start()
    yield
    await app[keys.DRAFTS].close()
    app[keys.SERVICE].close()
    await warmth.close()
    await handle.close()


async def batches(app: web.Application) -> AsyncIterator[None]:
    """Beside the sessions, whose store keeps other servers out of the folder."""
    await app[keys.BATCHES].open(await app[keys.SESSIONS].keeper.run(store_keys.folder))
    yield
    await app[keys.BATCHES].close()


async def stop_batches(app: web.Application) -> None:
    """Nobody waits for them: a later server goes on."""
    await app[keys.BATCHES].close()


async def drain(app: web.Application) -> None:
    """Lets running answers finish, until the deadline; ends the rest."""
    await app[keys.SERVICE].drain(app[keys.SETTINGS].server.drain_timeout_s)


async def close_sockets(app: web.Application) -> None:
    """Once the answers have ended, their last events are sent."""
    await app[SOCKETS].close()
