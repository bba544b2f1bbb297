"""The distributor, composed; and from a bound port to the last goodbye."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import uvloop
from aiohttp import (
    ClientError,
    ClientSession,
    ClientTimeout,
    DummyCookieJar,
    TCPConnector,
    TraceConfig,
    TraceRequestRedirectParams,
    web,
)

from lmserve.allocator import give_memory_back
from lmserve.distributor.auth import ADMINISTERED, keys_required, mark
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
from lmserve.edge.access_log import log_ended
from lmserve.edge.connections import EdgeLimits, EdgeRunner, EdgeSite
from lmserve.edge.hosts import Hosts
from lmserve.edge.keyring import KEYRING, Keyring, reloads_of
from lmserve.edge.listen import wire_logger
from lmserve.edge.reload import RELOADS
from lmserve.edge.signals import on_hangup, stop_signals
from lmserve.edge.tls import add_certificate

BACKLOG = 1024
HANDLER_GRACE_S = 5.0  # after the drain, handlers get this long to write their last bytes
KEEPALIVE_S = 4.0  # idle connections to nodes: less than any server keeps them, uvicorn's 5 s too

logger = logging.getLogger(__name__)


def build_app(settings: ProxySettings) -> web.Application:
    keyring = Keyring(settings.api_keys, admin_keys=settings.admin_keys, key_file=settings.key_file)
    hosts = Hosts(settings.server_name, settings.allowed_hosts, has_keys=keyring.asks)
    app = web.Application(
        middlewares=[
            middlewares.request_id,
            middlewares.errors,
            hosts.guard,
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
    app[RELOADS] = reloads_of(keyring)
    app[middlewares.ENDED] = (log_ended,)
    app[middlewares.ERROR_BODIES] = ERROR_BODIES
    app.add_routes(routes)
    app.router.add_get(RESPONSES, connect, allow_head=False)
    for path in (*ADMINISTERED, "/{tail:.*}"):
        app.router.add_route("*", path, forward, expect_handler=middlewares.no_expect)
    mark(app, "/health", RESPONSES)
    app.on_response_prepare.append(middlewares.stamp)
    app.cleanup_ctx.extend((access, running))
    app.on_shutdown.append(drain)
    return app


async def forward(request: web.Request) -> web.StreamResponse:
    return await middlewares.expect(request, request.app[PROXY].handle)


async def access(app: web.Application) -> AsyncIterator[None]:
    """Reads the keys, and again when they change; then ends what they no longer open."""
    app[RELOADS].after.append(lambda: app[SOCKETS].dismiss(app[KEYRING].knows))
    async with app[RELOADS].running():
        yield


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
        trace_configs=[_nowhere_else()],
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


def _nowhere_else() -> TraceConfig:
    """What a node is asked, it answers: none has others asked in its place, with what was meant
    for it. A redirection that answers a client's request is passed on."""

    async def refuse(_: object, __: object, params: TraceRequestRedirectParams) -> None:
        params.response.close()
        raise ClientError(f"it sends elsewhere ({params.response.status})")

    tracing = TraceConfig()
    tracing.on_request_redirect.append(refuse)
    return tracing


async def drain(app: web.Application) -> None:
    timeout_s = app[SETTINGS].drain_timeout_s
    await asyncio.gather(app[PROXY].drain(timeout_s), app[SOCKETS].close(timeout_s))


@asynccontextmanager
async def running_proxy(
    settings: ProxySettings, listener: socket.socket
) -> AsyncIterator[web.Application]:
    """The distributor, listening; drained and closed on exit. One path for command and tests."""
    app = build_app(settings)
    certificate = add_certificate(app[RELOADS]) if settings.ssl else None
    context = certificate.context if certificate else None
    limits = EdgeLimits(
        max_connections=settings.max_connections,
        header_timeout_s=settings.header_timeout_s,
        write_timeout_s=settings.write_timeout_s,
        message_timeout_s=settings.body_timeout_s,
        descriptors_each=3,  # with those to nodes
    )
    runner = EdgeRunner(
        app,
        limits,
        handler_cancellation=True,  # a client that leaves ends its request at the node, too
        auto_decompress=False,  # bodies pass as they are
        logger=wire_logger(),
        shutdown_timeout=HANDLER_GRACE_S,
    )
    try:
        await runner.setup()
        await EdgeSite(runner, listener, backlog=BACKLOG, ssl_context=context).start()
        yield app
    finally:
        await runner.cleanup()


def serve(
    settings: ProxySettings,
    listener: socket.socket,
    announce: Callable[[], None],
) -> None:
    """Serves until SIGINT or SIGTERM. `announce` is called when it listens."""
    give_memory_back()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, listener, announce))


async def _serve(
    settings: ProxySettings,
    listener: socket.socket,
    announce: Callable[[], None],
) -> None:
    with stop_signals() as stopped:
        async with running_proxy(settings, listener) as app:
            announce()
            on_hangup(app[RELOADS].now)
            await stopped.wait()
            logger.info("stopping: open answers may finish")
