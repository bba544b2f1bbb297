"""The application, composed: nothing starts and nothing listens here."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from lmserve import __version__
from lmserve.bridge.handle import EngineHandle
from lmserve.edge import middlewares
from lmserve.edge.access_log import log_ended
from lmserve.edge.keyring import KEYRING, reloads_of
from lmserve.edge.reload import RELOADS
from lmserve.protocol import openapi
from lmserve.server import keys, rates
from lmserve.server.batches.lines import BatchLines
from lmserve.server.doors import access, application, keyring_of, served
from lmserve.server.http_counts import HttpCounts
from lmserve.server.responses.narrator import ResponseNarrator
from lmserve.server.routes.pages import PAGES, pages
from lmserve.server.socket.sockets import SOCKETS, Sockets
from lmserve.server.traces import trace
from lmserve.service.admission import BodyBytes
from lmserve.service.answers.answers import Answers
from lmserve.service.batches.batches import Batches
from lmserve.service.exposition import process, requests, server
from lmserve.service.exposition.exposition import Exposition
from lmserve.service.generate import Service
from lmserve.service.loop_lag import LoopLag
from lmserve.service.metrics import Metrics
from lmserve.service.sessions.sessions import Sessions
from lmserve.service.store import keys as store_keys
from lmserve.service.streams.resumable import Resumable
from lmserve.service.streams.streams import Streams
from lmserve.service.warm.drafts import Drafts
from lmserve.service.warm.warmth import Warmth
from lmserve.settings import Settings


def build_app(settings: Settings, handle: EngineHandle) -> web.Application:
    """The application over this engine, which starts and ends with it."""
    keyring, routes = keyring_of(settings), served(settings)
    app = application(settings, keyring, settings.server.server_name, routes)
    app[RELOADS] = reloads_of(keyring)
    app[keys.SETTINGS] = settings
    app[keys.HANDLE] = handle
    app[keys.METRICS] = metrics = Metrics(handle, settings)
    app[keys.SERVICE] = service = Service(handle, settings, metrics, limits_of=keyring.limits_of)
    app[keys.WARMTH] = warmth = Warmth(
        handle, settings.warm, metrics, namespace_of=service.tenants.namespace
    )
    app[keys.SESSIONS] = sessions_ = Sessions(service, settings.sessions, warmth=warmth)
    app[keys.DRAFTS] = Drafts(service, sessions_, warmth, settings.warm)
    app[keys.STREAMS] = Streams(settings.streams)
    app[keys.RESUMABLE] = Resumable(app[keys.STREAMS], sessions_.ids)
    app[keys.ANSWERS] = Answers(service, sessions_, app[keys.STREAMS], ResponseNarrator)
    app[keys.BATCHES] = Batches(
        settings, sessions_.ids, metrics, BatchLines(app), lambda: service.at_leisure
    )
    app[keys.BODY_BYTES] = BodyBytes()
    app[keys.LOOP_LAG] = LoopLag()
    app[SOCKETS] = Sockets(metrics)
    app[keys.OPENAPI] = openapi.Document(
        [(r.method, r.path, r.operation, r.open) for r in routes], __version__
    )
    app[PAGES] = {}
    app[keys.EXPOSITION] = exposition_of(app, http := HttpCounts())
    app[middlewares.ENDED] = (log_ended, http.ended)
    app[middlewares.HAS_INDEX] = settings.server.docs
    app[middlewares.ERROR_BODIES] = {r.path: r.error_body for r in routes if r.error_body}
    app.cleanup_ctx.extend((access, loop_lag, pages, streams, sessions, engine, batches))
    app.on_response_prepare.extend((part, rates.stamp))
    app.on_shutdown.extend((stop_batches, drain, close_sockets))
    if settings.log.otlp_traces_endpoint is not None:
        trace(app, settings.log.otlp_traces_endpoint)
    return app


def exposition_of(app: web.Application, http: HttpCounts) -> Exposition:
    """What `/metrics` tells."""
    exposition = Exposition(app[keys.METRICS], app[keys.HANDLE], app[keys.SETTINGS])
    metrics, name_of = app[keys.METRICS], app[KEYRING].name_of
    exposition.sources += (
        lambda f: requests.key_families(f, metrics, name_of),
        lambda f: server.load_families(f, app[keys.SERVICE].load(), name_of),
        lambda f: server.stream_families(f, metrics, app[keys.STREAMS]),
        lambda f: server.store_families(f, metrics, app[keys.SESSIONS].keeper),
        lambda f: process.loop_families(f, app[keys.LOOP_LAG]),
        http.families,
    )
    return exposition


async def loop_lag(app: web.Application) -> AsyncIterator[None]:
    app[keys.LOOP_LAG].start()
    yield
    app[keys.LOOP_LAG].stop()


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


@asynccontextmanager
async def draining(app: web.Application) -> AsyncIterator[None]:
    """At its end, while the server listens still: who comes is told to go elsewhere, and when."""
    try:
        yield
    finally:
        await stop_batches(app)
        await drain(app)


async def part(request: web.Request, response: web.StreamResponse) -> None:
    """Signal: a server that drains keeps no connection for another request."""
    is_socket = isinstance(response, web.WebSocketResponse)
    if request.app[keys.SERVICE].draining.seconds_left is not None and not is_socket:
        response.force_close()
        response.headers["Connection"] = "close"  # what aiohttp tells is made before this


async def close_sockets(app: web.Application) -> None:
    """Once the answers have ended, their last events are sent."""
    await app[SOCKETS].close()
