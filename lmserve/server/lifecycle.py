"""From a bound port to the last goodbye.

    bind ─► start engine ─► listen ─► announce ─► model ready ─► register ─► … ─► signal
                                                                                   │
      deregister ─► stop listening ─► drain (until a deadline) ─► wait for handlers ─► close engine

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
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import uvloop
from aiohttp import web

from lmserve.bridge.handle import EngineHandle
from lmserve.bridge.select import make_handle
from lmserve.edge import tls
from lmserve.edge.listen import WILDCARDS, bind, url_of, wire_logger
from lmserve.edge.signals import stop_signals
from lmserve.errors import SetupError
from lmserve.messages import EngineInfo
from lmserve.server.app import build_app
from lmserve.server.banner import ready_lines
from lmserve.server.cors import Cors
from lmserve.server.keys import HANDLE, SERVICE
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


def serve(settings: Settings, announce: Callable[[str], None]) -> None:
    """Serves until SIGINT or SIGTERM. `announce` gets the lines a person should see.

    Raises SetupError when the port cannot be had or the model cannot be loaded.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, announce))


async def _serve(settings: Settings, announce: Callable[[str], None]) -> None:
    began = time.monotonic()
    with stop_signals() as stopped:
        async with running_server(settings) as server:
            announce(f"open {server.url} in a browser; the model is loading")
            ready = asyncio.create_task(_load(server))
            stop = asyncio.create_task(stopped.wait())
            try:
                await asyncio.wait({ready, stop}, return_when=asyncio.FIRST_COMPLETED)
                if ready.done():
                    info = ready.result()
                    gc.collect()
                    gc.freeze()  # what start-up made lives on: full collections need not walk it
                    name, load_s = settings.server.model_name, time.monotonic() - began
                    announce(ready_lines(server.url, name, info, load_s))
                    await stop
            finally:
                for task in (ready, stop):
                    task.cancel()
                await asyncio.gather(ready, stop, return_exceptions=True)
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
        context = await _tls_context(settings.server)
        app = build_app(settings, handle or make_handle(settings.engine))
        runner = web.AppRunner(
            app,
            # aiohttp's default leaves a handler running when its client is gone; this one line
            # is what makes a lost client abort its request
            handler_cancellation=True,
            auto_decompress=False,  # no bombs: `lmserve.server.body` refuses compressed bodies
            access_log=None,  # `lmserve.edge.middlewares` writes it
            logger=wire_logger(),
            shutdown_timeout=HANDLER_GRACE_S,
        )
        try:
            await runner.setup()
            await web.SockSite(runner, listener, backlog=BACKLOG, ssl_context=context).start()
            async with registered(settings.server, node_url, app[HANDLE], app[SERVICE]):
                url = url_of(listener, https=settings.server.ssl)
                yield Server(url, app[HANDLE], app[SERVICE])
        finally:
            await runner.cleanup()
    finally:
        listener.close()


def check(settings: ServerSettings) -> None:
    """Raises SetupError for what would keep a server from starting, whatever its model."""
    with bind(settings.server_name, settings.server_port) as listener:
        node_url_of(settings, listener)
    Cors(settings)
    if settings.ssl:
        tls.make_context()


async def _tls_context(settings: ServerSettings) -> ssl.SSLContext | None:
    return await asyncio.to_thread(tls.make_context) if settings.ssl else None


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
