"""Servers and distributors for the tests here, and bare sockets that misbehave."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from aiohttp import ClientSession, web

from lmserve.bridge.fake import FakeEngine
from lmserve.bridge.mailbox import Mailbox
from lmserve.distributor.keys import NODES
from lmserve.distributor.nodes import Node
from lmserve.distributor.settings import ProxySettings
from lmserve.messages import NOBODY, Tenant
from lmserve.sampling import SamplingParams
from lmserve.settings import EngineSettings

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
# quick to notice, and never by a time alone that a test would wait for
QUICK = ProxySettings(health_interval_s=0.02, connect_timeout_s=2.0, drain_timeout_s=0.2)


class WatchedEngine(FakeEngine):
    """Tells when a request was aborted."""

    def __init__(self, settings: EngineSettings):
        super().__init__(settings)
        self.submitted = asyncio.Event()
        self.aborted = asyncio.Event()

    def submit(
        self,
        token_ids: list[int],
        sampling: SamplingParams,
        priority: int = 0,
        tenant: Tenant = NOBODY,
    ) -> Mailbox:
        mailbox = super().submit(token_ids, sampling, priority, tenant)
        self.submitted.set()
        return mailbox

    def abort(self, mailbox: Mailbox) -> None:
        super().abort(mailbox)
        if self.aborts:
            self.aborted.set()


@dataclass
class Served:
    """An lmserve server behind the distributor."""

    url: str
    engine: WatchedEngine
    stack: AsyncExitStack

    async def stop(self) -> None:
        await self.stack.aclose()


class Distributor:
    def __init__(self, app: web.Application, url: str, session: ClientSession):
        self.app = app
        self.url = url
        self.session = session
        self.post = session.post
        self.get = session.get
        self.delete = session.delete

    def node(self, url: str) -> Node:
        return self.app[NODES].get(url)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Polls what the watch changes."""
        async with asyncio.timeout(20):
            while True:
                if condition():
                    return
                await asyncio.sleep(0.005)

    def known(self) -> list[str]:
        return [node.url for node in self.app[NODES]]

    async def chat(self, **fields: Any) -> Any:
        async with self.post("/v1/chat/completions", json=CHAT | fields) as response:
            return response.status, await response.json()


class BareNode:
    """A socket that says it is healthy, serves one model, and else does as it is told."""

    def __init__(self, answer: bytes, model: str = "bare"):
        self.answer = answer  # to what is not asked by the distributor itself; then it hangs up
        self.model = model
        self.heads: list[bytes] = []  # of requests that were passed on
        self.url = ""
        self._server: asyncio.Server | None = None

    async def start(self, port: int = 0) -> BareNode:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"GET /health "):
                writer.write(whole(b"{}"))
            elif head.startswith(b"GET /v1/models "):
                writer.write(whole(b'{"data":[{"id":"%b"}]}' % self.model.encode()))
            else:
                self.heads.append(head)
                writer.write(self.answer)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None


def whole(body: bytes, status: str = "200 OK") -> bytes:
    return (
        f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nConnection: close\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body


def chunks(*parts: bytes, content_type: str = "text/event-stream") -> bytes:
    """A stream that does not end."""
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n\r\n"
    ).encode()
    return head + b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)


def listen() -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", 0))
    return listener


MakeNode = Callable[..., Awaitable[Served]]
MakeProxy = Callable[..., Awaitable[Distributor]]
MakeBare = Callable[..., Awaitable[BareNode]]
MakeApp = Callable[[web.Application], Awaitable[str]]
