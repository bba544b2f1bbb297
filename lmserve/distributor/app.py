"""The distributor, composed; and from a bound port to the last goodbye."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import uvloop
from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, TCPConnector, web

from lmserve.distributor.auth import keys_required, leave_open
from lmserve.distributor.control import routes
from lmserve.distributor.dialects import ERROR_BODIES
from lmserve.distributor.dispatch import Dispatch
from lmserve.distributor.health import Watch
from lmserve.distributor.keys import METRICS, NODES, PROXY, SESSION, SETTINGS, SOCKETS, WATCH
from lmserve.distributor.metrics import Metrics
from lmserve.distributor.nodes import Node, Nodes, node_url
from lmserve.distributor.proxy import Proxy
from lmserve.distributor.settings import ProxySettings
from lmserve.distributor.socket.route import connect
from lmserve.distributor.socket.sockets import Sockets
from lmserve.distributor.wish import RESPONSES
from lmserve.edge import middlewares
from lmserve.edge.keyring import KEYRING, Keyring
from lmserve.edge.signals import stop_signals

BACKLOG = 1024
HANDLER_GRACE_S = 5.0  # after the drain, handlers get this long to write their last bytes
KEEPALIVE_S = 4.0  # idle connections to nodes: less than any server keeps them, uvicorn's 5 s too

logger = logging.getLogger(__name__)


def build_app(settings: ProxySettings) -> web.Application:
    keyring = Keyring(settings.api_keys)
    app = web.Application(
        middlewares=[
            middlewares.request_id,
            middlewares.errors,
            keys_required(keyring),
        ],
        client_max_size=settings.max_body_bytes,
    )
    app[SETTINGS] = settings
    app[NODES] = nodes = Nodes()
    for url in settings.nodes:
        nodes.add(Node(node_url(url), configured=True))
    app[METRICS] = Metrics(nodes)
    app[SOCKETS] = Sockets()
    app[KEYRING] = keyring
    app[middlewares.ERROR_BODIES] = ERROR_BODIES
    app.add_routes(routes)
    app.router.add_get(RESPONSES, connect, allow_head=False)
    leave_open(app, "/health", RESPONSES)
    app.router.add_route("*", "/{tail:.*}", forward, expect_handler=middlewares.no_expect)
    app.on_response_prepare.append(middlewares.stamp)
    app.cleanup_ctx.append(running)
    app.on_shutdown.append(drain)
    return app


async def forward(request: web.Request) -> web.StreamResponse:
    return await middlewares.expect(request, request.app[PROXY].handle)


async def running(app: web.Application) -> AsyncIterator[None]:
    """The connections to the nodes, and the watch over them."""
    settings = app[SETTINGS]
    session = ClientSession(
        connector=TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S),
        # an answer may take as long as it takes: what ends it is the watch over its node
        timeout=ClientTimeout(total=None, sock_connect=settings.connect_timeout_s),
        cookie_jar=DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
    )
    async with session:
        app[SESSION] = session
        app[WATCH] = watch = Watch(app[NODES], session, settings)
        dispatch = Dispatch(app[NODES], settings.strategy)
        app[PROXY] = Proxy(dispatch, session, app[METRICS], settings)
        await asyncio.gather(*(watch.check(node) for node in app[NODES]))
        for node in app[NODES]:
            watch.follow(node)
        yield
        await app[SOCKETS].ended()
        await watch.close()


async def drain(app: web.Application) -> None:
    timeout_s = app[SETTINGS].drain_timeout_s
    await asyncio.gather(app[PROXY].drain(timeout_s), app[SOCKETS].close(timeout_s))


@asynccontextmanager
async def running_proxy(
    settings: ProxySettings, listener: socket.socket, tls: ssl.SSLContext | None = None
) -> AsyncIterator[web.Application]:
    """The distributor, listening; drained and closed on exit. One path for command and tests."""
    app = build_app(settings)
    runner = web.AppRunner(
        app,
        handler_cancellation=True,  # a client that leaves ends its request at the node, too
        auto_decompress=False,  # bodies pass as they are
        access_log=None,  # `lmserve.edge.middlewares` writes it
        shutdown_timeout=HANDLER_GRACE_S,
    )
    try:
        await runner.setup()
        await web.SockSite(runner, listener, backlog=BACKLOG, ssl_context=tls).start()
        yield app
    finally:
        await runner.cleanup()


def serve(
    settings: ProxySettings,
    listener: socket.socket,
    tls: ssl.SSLContext | None,
    announce: Callable[[], None],
) -> None:
    """Serves until SIGINT or SIGTERM. `announce` is called when it listens."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, listener, tls, announce))


async def _serve(
    settings: ProxySettings,
    listener: socket.socket,
    tls: ssl.SSLContext | None,
    announce: Callable[[], None],
) -> None:
    with stop_signals() as stopped:
        async with running_proxy(settings, listener, tls):
            announce()
            await stopped.wait()
            logger.info("stopping: open answers may finish")
