"""Real distributors over real servers (with fake engines) and over bare sockets that misbehave.

Every test here fails when lmserve blocks the loop.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web
from blockbuster import BlockBuster, blockbuster_ctx

from lmserve.distributor.app import running_proxy
from lmserve.server.lifecycle import running_server
from lmserve.settings import EngineSettings, ServerSettings, SessionSettings, Settings
from tests.distributor.nodes import (
    QUICK,
    BareNode,
    Distributor,
    MakeApp,
    MakeBare,
    MakeNode,
    MakeProxy,
    Served,
    WatchedEngine,
    listen,
)


@pytest.fixture(autouse=True)
def no_blocking() -> Iterator[BlockBuster]:
    with blockbuster_ctx("lmserve") as watched:
        yield watched


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
async def make_node(stack: AsyncExitStack, tmp_path: Path) -> MakeNode:
    """Starts a server."""
    numbers = iter(range(1000))

    async def make(model: str = "mock", tokens_s: float = 0.0, **server: Any) -> Served:
        data_dir = tmp_path / f"node-{next(numbers)}"
        settings = Settings(
            server=ServerSettings(server_port=0, model_name=model, drain_timeout_s=0.1, **server),
            engine=EngineSettings(engine="mock", mock_tokens_s=tokens_s),
            sessions=SessionSettings(data_dir=str(data_dir)),
        )
        engine = WatchedEngine(settings.engine)
        own = await stack.enter_async_context(AsyncExitStack())
        running = await own.enter_async_context(running_server(settings, engine))
        return Served(running.url, engine, own)

    return make


@pytest.fixture
async def make_proxy(stack: AsyncExitStack) -> MakeProxy:
    """Starts a distributor, and a client that talks to it."""

    async def make(*urls: str, headers: Any = None, **settings: Any) -> Distributor:
        listener = listen()
        port = listener.getsockname()[1]
        wanted = replace(QUICK, nodes=urls, **settings)
        app = await stack.enter_async_context(running_proxy(wanted, listener))
        url = f"http://127.0.0.1:{port}"
        session = await stack.enter_async_context(ClientSession(url, headers=headers))
        return Distributor(app, url, session)

    return make


@pytest.fixture
async def make_app(stack: AsyncExitStack) -> MakeApp:
    """Serves any application; gives its URL."""

    async def make(app: web.Application) -> str:
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.2)
        stack.push_async_callback(runner.cleanup)
        await runner.setup()
        listener = listen()
        port = listener.getsockname()[1]
        await web.SockSite(runner, listener).start()
        return f"http://127.0.0.1:{port}"

    return make


@pytest.fixture
async def make_bare(stack: AsyncExitStack) -> MakeBare:
    async def make(answer: bytes = b"", model: str = "bare") -> BareNode:
        node = await BareNode(answer, model).start()
        stack.push_async_callback(node.stop)
        return node

    return make


@pytest.fixture
def dead_url() -> str:
    """Nobody listens there."""
    with listen() as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"
