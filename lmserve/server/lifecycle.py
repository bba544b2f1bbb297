"""From a bound port to the last goodbye.

    bind ─► start engine ─► listen ─► announce ─► model ready ─► register ─► … ─► signal
                                                                                   │
      deregister ─► drain (until a deadline) ─► stop listening ─► wait for handlers ─► close engine

The port, the certificate and the like come first: what is wrong with them must be told before a
model is loaded (`check`). One path serves the command and the tests (`running_server`).
"""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

import uvloop
from aiohttp import web

from lmserve.allocator import give_memory_back
from lmserve.bridge.handle import EngineHandle
from lmserve.bridge.select import make_handle
from lmserve.edge.connections import EdgeLimits, EdgeRunner, EdgeSite
from lmserve.edge.listen import WILDCARDS, bind, url_of, wire_logger
from lmserve.edge.notify import notify, tell_alive
from lmserve.edge.reload import RELOADS
from lmserve.edge.signals import on_hangup, stop_signals
from lmserve.edge.tls import add_certificate, make_context
from lmserve.errors import SetupError
from lmserve.messages import EngineInfo
from lmserve.server.app import build_app, draining
from lmserve.server.banner import ready_lines
from lmserve.server.cors import Cors
from lmserve.server.doors import admin_application, admin_name, keyring_of
from lmserve.server.http_counts import connection_families
from lmserve.server.keys import EXPOSITION, HANDLE, SERVICE
from lmserve.server.registration import registered
from lmserve.service.generate import Service
from lmserve.settings import ServerSettings, Settings

BACKLOG = 1024  # connections that wait to be accepted: as many as may ask at once
HANDLER_GRACE_S = 5.0  # after the drain, handlers get this long to write their last bytes


@dataclass(frozen=True, slots=True)
class Server:
    """A server that listens; its model may still be loading."""

    url: str
    handle: EngineHandle
    service: Service
    app: web.Application
    admin_url: str | None = None


def serve(settings: Settings, announce: Callable[[str], None]) -> None:
    """Serves until SIGINT or SIGTERM. `announce` gets the lines a person should see.

    Raises SetupError when the port cannot be had or the model cannot be loaded.
    """
    give_memory_back()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, announce))


async def _serve(settings: Settings, announce: Callable[[str], None]) -> None:
    began = time.monotonic()
    with stop_signals() as stopped:
        async with running_server(settings) as server:
            announce(f"open {server.url} in a browser; the model is loading")
            if server.admin_url is not None:
                announce(f"administration and metrics are at {server.admin_url}")
            on_hangup(server.app[RELOADS].now)
            notify("STATUS=loading the model")
            ready = asyncio.create_task(_load(server))
            stop = asyncio.create_task(stopped.wait())
            alive = asyncio.create_task(
                tell_alive(lambda: server.handle.health().state != "failed")
            )
            try:
                await asyncio.wait({ready, stop}, return_when=asyncio.FIRST_COMPLETED)
                if ready.done():
                    info = ready.result()
                    gc.collect()
                    gc.freeze()  # what start-up made lives on: full collections need not walk it
                    name, load_s = settings.server.model_name, time.monotonic() - began
                    announce(ready_lines(server.url, name, info, load_s))
                    notify("READY=1", f"STATUS=serving at {server.url}")
                    await stop
            finally:
                for task in (ready, stop, alive):
                    task.cancel()
                await asyncio.gather(ready, stop, alive, return_exceptions=True)
            notify("STOPPING=1", "STATUS=running answers may finish")
            announce("stopping: running answers may finish")


async def _load(server: Server) -> EngineInfo:
    info = await server.handle.wait_ready()
    await server.service.prepare()
    return info


@asynccontextmanager
async def running_server(
    settings: Settings, handle: EngineHandle | None = None
) -> AsyncIterator[Server]:
    """The real server, listening; drained and closed on exit."""
    listener = bind(settings.server.server_name, settings.server.server_port)
    try:
        node_url = node_url_of(settings.server, listener)
        app = build_app(settings, handle or make_handle(settings.engine))
        certificate = add_certificate(app[RELOADS]) if settings.server.ssl else None
        context = certificate.context if certificate else None
        runner = _runner(app, settings)
        async with AsyncExitStack() as last:  # what is drained can be watched until then
            try:
                await runner.setup()
                told = partial(connection_families, runner.server, certificate)
                app[EXPOSITION].sources += (told,)
                admin_url = await last.enter_async_context(_administered(app, settings, context))
                await EdgeSite(runner, listener, backlog=BACKLOG, ssl_context=context).start()
                own = (app[HANDLE], app[SERVICE])
                leaving = registered(settings.server, node_url, *own, _node_key(settings))
                async with draining(app), leaving:
                    url = url_of(listener, https=settings.server.ssl)
                    yield Server(url, *own, app, admin_url)
            finally:
                await runner.cleanup()
    finally:
        listener.close()


@asynccontextmanager
async def _administered(
    app: web.Application, settings: Settings, context: ssl.SSLContext | None
) -> AsyncIterator[str | None]:
    """The administrators' port, where there is one: its URL. It is open as long as there is
    something to see."""
    access = settings.access
    if access.admin_port is None:
        yield None
        return
    with bind(admin_name(settings), access.admin_port, flags="--admin") as listener:
        runner = _runner(admin_application(app, settings), settings)
        try:
            await runner.setup()
            await EdgeSite(runner, listener, backlog=BACKLOG, ssl_context=context).start()
            yield url_of(listener, https=context is not None)
        finally:
            await runner.cleanup()


def _runner(app: web.Application, settings: Settings) -> EdgeRunner:
    return EdgeRunner(
        app,
        edge_limits(settings),
        # aiohttp's default leaves a handler running when its client is gone; this one line
        # is what makes a lost client abort its request
        handler_cancellation=True,
        auto_decompress=False,  # no bombs: `lmserve.server.body` refuses compressed bodies
        logger=wire_logger(),
        shutdown_timeout=HANDLER_GRACE_S,
    )


def _node_key(settings: Settings) -> str | None:
    """What is shown to a distributor: only its administrators say what nodes there are."""
    return next(iter((*settings.access.admin_keys, *settings.server.api_keys)), None)


def check(settings: Settings) -> None:
    """Raises SetupError for what would keep a server from starting, whatever its model."""
    server, access = settings.server, settings.access
    if access.admin_name is not None and access.admin_port is None:
        raise SetupError(
            f"--admin-name {access.admin_name} is the address of no port: give --admin-port too, "
            "or leave it out"
        )
    with ExitStack() as stack:
        listener = stack.enter_context(bind(server.server_name, server.server_port))
        node_url_of(server, listener)
        if access.admin_port is not None:
            stack.enter_context(bind(admin_name(settings), access.admin_port, flags="--admin"))
    Cors(server)
    keyring_of(settings).read()
    if server.ssl:
        make_context()


def edge_limits(settings: Settings) -> EdgeLimits:
    limits = settings.limits
    return EdgeLimits(
        max_connections=limits.max_connections,
        header_timeout_s=limits.header_timeout_s,
        write_timeout_s=settings.server.write_timeout_s,
        message_timeout_s=limits.body_timeout_s,
    )


def node_url_of(settings: ServerSettings, listener: socket.socket) -> str:
    """Under which a distributor reaches this server. Raises SetupError where nobody can tell."""
    host: str | None = listener.getsockname()[0]
    if settings.advertise_url is not None:
        try:
            host = urlsplit(settings.advertise_url).hostname
        except ValueError as error:
            raise SetupError(f"--advertise-url {settings.advertise_url}: {error}") from None
    if settings.proxy_url is not None and host in WILDCARDS:
        scheme = "https" if settings.ssl else "http"
        raise SetupError(
            f"{host} is every address of this machine and none to register with --proxy-url: "
            f"give --advertise-url {scheme}://<this machine>:{settings.server_port or 'PORT'}"
        )
    if settings.advertise_url is not None:
        return settings.advertise_url.rstrip("/")
    return url_of(listener, https=settings.ssl)
