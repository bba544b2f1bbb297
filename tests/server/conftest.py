"""A server over a fake engine, in both ways: the bare application, and the production entry.

Every test here fails when lmserve blocks the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from aiohttp.test_utils import TestClient
from blockbuster import BlockBuster, blockbuster_ctx
from pytest_aiohttp import AiohttpClient

from lmserve.bridge.fake import FakeEngine
from lmserve.bridge.mailbox import Mailbox
from lmserve.messages import NOBODY, Tenant
from lmserve.sampling import SamplingParams
from lmserve.server.app import build_app
from lmserve.server.lifecycle import Server, running_server
from lmserve.settings import EngineSettings, ServerSettings, Settings


class WatchedEngine(FakeEngine):
    """Tells when a request came and when one was aborted."""

    def __init__(self, settings: EngineSettings | None = None):
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


@pytest.fixture(autouse=True)
def no_blocking() -> Iterator[BlockBuster]:
    with blockbuster_ctx("lmserve") as watched:
        yield watched


@pytest.fixture
def settings() -> Settings:
    return Settings(
        server=ServerSettings(server_port=0, model_name="mock", drain_timeout_s=0.2),
        engine=EngineSettings(engine="mock"),
    )


@pytest.fixture
async def fake(settings: Settings) -> WatchedEngine:
    return WatchedEngine(settings.engine)


@pytest.fixture
async def client(
    aiohttp_client: AiohttpClient, settings: Settings, fake: WatchedEngine
) -> TestClient:
    """Over the application alone."""
    return await aiohttp_client(build_app(settings, fake))


@pytest.fixture
async def server(settings: Settings, fake: WatchedEngine) -> AsyncIterator[Server]:
    """The production entry, on a free port."""
    async with running_server(settings, fake) as running:
        yield running
