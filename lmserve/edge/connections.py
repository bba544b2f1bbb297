"""All connections of a listening port: how many there may be, and a look at each every so often.

aiohttp's own site would take any number, wait a minute for each TLS handshake, and with uvloop
stop listening for good where the process runs out of file descriptors. So it accepts here:

    accept ─┬─ room ─► TLS ─► ClientConnection ─► aiohttp
            ├─ none, but one is idle ─► that one is closed
            └─ none ─► 503, in a bounded number of tasks
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import ssl
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from lmserve.edge import descriptors, refusal
from lmserve.edge.connection import ClientConnection

MAX_REFUSED = 64  # being told so; the oldest makes room
REFUSAL_S = 1.0
GOODBYE_S = 1.0  # a client's, over TLS: its descriptor is held until then
ACCEPT_PAUSE_S = 0.1  # where accepting fails: no descriptors, no memory
WARN_EVERY_S = 10.0  # at most, of that
MAX_LOOK_S = 2.0
KEEP_ALIVE_S = 75.0  # idle, even with half a head: longer than the balancers in front keep theirs

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EdgeLimits:
    max_connections: int
    header_timeout_s: float
    write_timeout_s: float
    descriptors_each: int = 1  # that a connection may take
    message_timeout_s: float = 30.0  # of a WebSocket


class Connections(web.Server):
    """Makes and keeps them. One look a few times in the shortest patience."""

    MAX_ARRIVING_BYTES = 64 * 2**20  # of WebSocket messages that are not whole, as of bodies

    def __init__(self, limits: EdgeLimits, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.limits = limits
        self.open: set[ClientConnection] = set()
        self.num_refused = 0
        self.arriving_bytes = 0
        self._idle: dict[ClientConnection, None] = {}  # the one idle longest first

    def __call__(self) -> ClientConnection:
        return ClientConnection(self, loop=self._loop, **self._kwargs)

    def closed(self, connection: ClientConnection) -> None:
        self.open.discard(connection)
        self.busy(connection)

    def idle(self, connection: ClientConnection) -> None:
        self._idle[connection] = None

    def busy(self, connection: ClientConnection) -> None:
        self._idle.pop(connection, None)

    def close_idle(self) -> bool:
        """Closes one that waits for its next request. False: there is none."""
        while self._idle:
            connection = next(iter(self._idle))
            self.busy(connection)
            if connection.awaits_request and not connection.num_unread:
                self.open.discard(connection)
                connection.force_close()
                return True
        return False

    def pre_shutdown(self) -> None:
        for connection in list(self.open):
            connection.stop()

    async def watch(self) -> None:
        """Until cancelled."""
        header_s, write_s = self.limits.header_timeout_s, self.limits.write_timeout_s
        look_s = min(header_s / 4, write_s / 4, self.limits.message_timeout_s / 4, MAX_LOOK_S)
        while True:
            await asyncio.sleep(look_s)
            now = self._loop.time()
            for connection in list(self.open):
                connection.look(now, header_s, write_s)


class EdgeRunner(web.AppRunner):
    """aiohttp's, over `Connections`."""

    __slots__ = ("_limits",)

    def __init__(self, app: web.Application, limits: EdgeLimits, **kwargs: Any):
        super().__init__(
            app,
            access_log=None,  # `lmserve.edge.access_log` writes it
            max_line_size=refusal.MAX_LINE_BYTES,
            max_field_size=refusal.MAX_LINE_BYTES,
            max_headers=refusal.MAX_HEADERS,
            keepalive_timeout=KEEP_ALIVE_S,
            **kwargs,
        )
        self._limits = limits

    async def _make_server(self) -> Connections:
        plain = await super()._make_server()
        return Connections(
            self._limits,
            plain.request_handler,
            request_factory=plain.request_factory,
            handler_cancellation=plain.handler_cancellation,
            loop=plain._loop,
            **plain._kwargs,
        )


class EdgeSite(web.BaseSite):
    """Owns the listening socket, once started: `stop` closes it."""

    __slots__ = ("_connections", "_listener", "_opening", "_refusing", "_tasks")

    def __init__(
        self,
        runner: EdgeRunner,
        listener: socket.socket,
        *,
        ssl_context: ssl.SSLContext | None = None,
        backlog: int,
    ):
        super().__init__(runner, ssl_context=ssl_context, backlog=backlog)
        assert isinstance(runner.server, Connections)
        self._connections = runner.server
        self._listener = listener
        self._opening: set[asyncio.Task[None]] = set()
        self._refusing: dict[asyncio.Task[None], None] = {}
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def name(self) -> str:
        host, port = self._listener.getsockname()[:2]
        return f"{'https' if self._ssl_context else 'http'}://{host}:{port}"

    async def start(self) -> None:
        await super().start()
        limits = self._connections.limits
        most = descriptors.make_room(limits.max_connections, limits.descriptors_each)
        self._listener.setblocking(False)
        self._listener.listen(self._backlog)
        self._tasks = [
            asyncio.create_task(self._accept(most)),
            asyncio.create_task(self._connections.watch()),
        ]

    async def stop(self) -> None:
        await super().stop()
        tasks = [*self._tasks, *self._opening, *self._refusing]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._listener.close()

    async def _accept(self, most: int) -> None:
        loop, failures = asyncio.get_running_loop(), _Failures()
        while True:
            try:
                client, _ = await loop.sock_accept(self._listener)
            except ConnectionError:  # gone before
                continue
            except OSError as error:
                failures.add(error)
                await asyncio.sleep(ACCEPT_PAUSE_S)
                continue
            if len(self._connections.open) < most or self._connections.close_idle():
                connection = self._connections()
                self._connections.open.add(connection)  # counts from now on
                task = asyncio.create_task(self._open(client, connection))
                self._opening.add(task)
                task.add_done_callback(self._opening.discard)
            else:
                self._refuse(client, most)

    async def _open(self, client: socket.socket, connection: ClientConnection) -> None:
        try:
            await self._connect(client, lambda: connection)
        finally:
            if connection.transport is None:
                self._connections.closed(connection)

    def _refuse(self, client: socket.socket, most: int) -> None:
        self._connections.num_refused += 1
        if len(self._refusing) >= MAX_REFUSED:
            next(iter(self._refusing)).cancel()
        task = asyncio.create_task(self._tell_full(client, most))
        self._refusing[task] = None
        task.add_done_callback(lambda task: self._refusing.pop(task, None))

    async def _tell_full(self, client: socket.socket, most: int) -> None:
        """Once its request begins to come, lest the answer be lost with it."""
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        transport = None
        try:
            async with asyncio.timeout(REFUSAL_S):
                transport = await self._connect(client, lambda: protocol)
                if transport is None or not await reader.read(2**16):
                    return
                transport.write(refusal.as_bytes(refusal.too_many(most)))
                if transport.can_write_eof():
                    transport.write_eof()
                while await reader.read(2**16):
                    pass
        except (TimeoutError, OSError):
            pass
        finally:
            if transport is not None:
                transport.close()

    def _connect(
        self, client: socket.socket, protocol_factory: Any
    ) -> Coroutine[Any, Any, asyncio.Transport | None]:
        return _connected(
            client, protocol_factory, self._ssl_context, self._connections.limits.header_timeout_s
        )


class _Failures:
    """Of accepting: warned of now and then, however often it fails."""

    def __init__(self) -> None:
        self._told_s = -math.inf  # on the loop's clock
        self._num_untold = 0

    def add(self, error: OSError) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._told_s < WARN_EVERY_S:
            self._num_untold += 1
            return
        more = f" ({self._num_untold} times since this was last told)" if self._num_untold else ""
        logger.warning("cannot accept connections: %s%s", error.strerror, more)
        self._told_s, self._num_untold = now, 0


async def _connected(
    client: socket.socket,
    protocol_factory: Any,
    context: ssl.SSLContext | None,
    handshake_timeout_s: float,
) -> asyncio.Transport | None:
    """None: the client left, or its handshake failed or took too long."""
    loop = asyncio.get_running_loop()
    try:
        transport, _ = await loop.connect_accepted_socket(
            protocol_factory,
            client,
            ssl=context,
            ssl_handshake_timeout=handshake_timeout_s if context else None,
            ssl_shutdown_timeout=GOODBYE_S if context else None,
        )
    except (OSError, TimeoutError) as error:  # TLS errors are OSErrors
        logger.debug("a connection was not opened: %s", error)
        client.close()
        return None
    except BaseException:
        client.close()
        raise
    return transport
