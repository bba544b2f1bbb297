"""From a bound port to the last goodbye.

    bind ─► start engine ─► listen ─► announce ─► model ready ─► … ─► signal
                                                                       │
      stop listening ─► drain (until a deadline) ─► wait for handlers ─► close engine

The port comes first: a port in use must be told before a model is loaded. One path serves the
command and the tests (`running_server`).
"""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import uvloop
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from lmserve.bridge.handle import EngineHandle
from lmserve.bridge.select import make_handle
from lmserve.errors import SetupError
from lmserve.messages import EngineInfo
from lmserve.server.app import build_app
from lmserve.server.banner import ready_lines
from lmserve.server.keys import HANDLE, SERVICE
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
    stopped = _on_signals()
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


def _on_signals() -> asyncio.Event:
    """Set by the first SIGINT or SIGTERM; the second ends the process at once."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if stopped.is_set():
            os._exit(130)  # the engine child sees EOF and exits too
        stopped.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    return stopped


@asynccontextmanager
async def running_server(
    settings: Settings, handle: EngineHandle | None = None
) -> AsyncIterator[Server]:
    """The real server, listening; drained and closed on exit."""
    listener = bind(settings.server)
    try:
        app = build_app(settings, handle or make_handle(settings.engine))
        runner = web.AppRunner(
            app,
            # aiohttp's default leaves a handler running when its client is gone; this one line
            # is what makes a lost client abort its request
            handler_cancellation=True,
            auto_decompress=False,  # no bombs: `lmserve.server.body` refuses compressed bodies
            access_log=None,  # `lmserve.server.middlewares` writes it
            logger=wire_logger(),
            shutdown_timeout=HANDLER_GRACE_S,
        )
        try:
            await runner.setup()
            await web.SockSite(runner, listener, backlog=BACKLOG).start()
            yield Server(url_of(listener), app[HANDLE], app[SERVICE])
        finally:
            await runner.cleanup()
    finally:
        listener.close()


class Malformed(logging.Filter):
    """What is no HTTP is the client's mistake, told to it as 400: one line here, no traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], HttpProcessingError):
            problem = str(record.exc_info[1].message).partition("\n")[0]
            record.msg, record.args = f"{record.getMessage()}: not HTTP: {problem}", ()
            record.exc_info = None
            record.levelno, record.levelname = logging.INFO, "INFO"
        return True


def wire_logger() -> logging.Logger:
    """aiohttp's own, less what any stranger could fill the log with."""
    logger = logging.getLogger("aiohttp.server")
    if not any(isinstance(each, Malformed) for each in logger.filters):
        logger.addFilter(Malformed())
    return logger


def bind(settings: ServerSettings) -> socket.socket:
    """A bound socket. Raises SetupError, one line with the remedy."""
    host, port = settings.server_name, settings.server_port
    if not 0 <= port < 2**16:  # getaddrinfo would wrap it
        raise SetupError(f"port {port} is not between 0 and 65535: give another --server-port")
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError):
        raise SetupError(
            f"{host!r} port {port} is no address to listen on: try --server-name 127.0.0.1"
        ) from None
    listener = socket.socket(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise SetupError(_why_not(host, port, error)) from None
    return listener


def _why_not(host: str, port: int, error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"port {port} of {host} is in use: give another with --server-port, or 0"
        case errno.EACCES:
            return f"port {port} needs more rights: give one above 1023 with --server-port"
        case errno.EADDRNOTAVAIL:
            return f"{host} is not an address of this machine: try --server-name 127.0.0.1"
        case _:
            return f"cannot listen on {host} port {port}: {error}"


def url_of(listener: socket.socket) -> str:
    """What to open in a browser of this machine."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # every address: a browser needs one
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
