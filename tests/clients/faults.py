"""A server that may restart, behind a network that fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lmserve_client import Lmserve

from lmserve.bridge.fake import FakeEngine
from lmserve.server.lifecycle import Server, running_server
from lmserve.settings import EngineSettings, ServerSettings, SessionSettings, Settings

REFUSED = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Proxy:
    """Its address stays, whatever server is behind it."""

    def __init__(self, url: str):
        self.upstream = url
        self.url = ""
        self.num_connections = 0
        self.down = False  # nobody is there
        self.upgrades = True  # False: lets no WebSocket pass, as some do
        # of each connection to come: bytes of the server's that pass before it breaks, both ways
        self.cuts: Iterator[int] = iter(())
        self._stalled: set[asyncio.StreamWriter] = set()  # of open connections
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    def cut(self) -> None:
        """Breaks all connections."""
        for writer in self._writers:
            writer.transport.abort()

    def stall(self) -> None:
        """From now on nothing passes on the connections that are open, and nobody is told."""
        self._stalled |= self._writers

    async def close(self) -> None:
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.down:
            writer.transport.abort()
            return
        self.num_connections += 1
        budget = next(self.cuts, None)
        there = urlsplit(self.upstream)
        writers = {writer}
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            if not self.upgrades and b"upgrade: websocket" in head.lower():
                writer.write(REFUSED)
                await writer.drain()
                writer.close()
                return
            server_reader, server_writer = await asyncio.open_connection(there.hostname, there.port)
            writers.add(server_writer)
            self._writers |= writers
            server_writer.write(head)
            pumps = [
                asyncio.create_task(self._pump(reader, server_writer, None)),
                asyncio.create_task(self._pump(server_reader, writer, budget)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writers -= writers
            for each in writers:
                with suppress(OSError, RuntimeError):
                    await each.drain()
                each.transport.abort() if budget is not None else each.close()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, budget: int | None
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(65536 if budget is None else min(65536, budget)):
                if writer in self._stalled:
                    continue
                writer.write(data)
                await writer.drain()
                if budget is not None:
                    budget -= len(data)
                    if budget <= 0:
                        return


@asynccontextmanager
async def proxying(url: str) -> AsyncIterator[Proxy]:
    proxy = Proxy(url)
    server = await asyncio.start_server(proxy.accept, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    proxy.url = f"http://{host}:{port}"
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()


class Site:
    """A server over a fake engine, which can be started anew over what it kept."""

    def __init__(self, data_dir: Path, stack: AsyncExitStack):
        self.data_dir = data_dir
        self.api_keys: tuple[str, ...] = ()
        self.fake: FakeEngine
        self.proxy: Proxy
        self.server: Server
        self._stack = stack
        self._running = AsyncExitStack()

    async def start(self) -> None:
        self.fake = FakeEngine()
        settings = Settings(
            server=ServerSettings(
                server_port=0, model_name="mock", drain_timeout_s=0.0, api_keys=self.api_keys
            ),
            engine=EngineSettings(engine="mock"),
            sessions=SessionSettings(data_dir=str(self.data_dir)),
        )
        self.server = await self._running.enter_async_context(running_server(settings, self.fake))
        if not hasattr(self, "proxy"):
            self.proxy = await self._stack.enter_async_context(proxying(self.server.url))
        self.proxy.upstream = self.server.url

    async def stop(self) -> None:
        await self._running.aclose()

    async def client(self, **options: Any) -> Lmserve:
        """Through the network that fails."""
        client = Lmserve(self.proxy.url, **{"reconnect_within_s": 30.0, **options})
        return await self._stack.enter_async_context(client)
