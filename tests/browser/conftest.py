"""A real server on a free port, and Chromium looking at its pages."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from lmserve.bridge.fake import FakeEngine
from lmserve.server.lifecycle import running_server
from lmserve.settings import (
    EngineSettings,
    ServerSettings,
    SessionSettings,
    Settings,
    WarmSettings,
)

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.async_api import Browser, Page, Request

FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
).split()
MAX_WAIT_MS = 30_000


@dataclass
class Visit:
    """One page on the server, and what went wrong or out while it was open."""

    url: str
    page: Page
    problems: list[str] = field(default_factory=list)  # console errors and exceptions
    requests: list[Request] = field(default_factory=list)

    def watch(self) -> None:
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request))
        self.page.on(
            "console", lambda said: said.type == "error" and self.problems.append(said.text)
        )

    async def open(self, path: str) -> None:
        await self.page.goto(self.url + path)

    async def ask(self, text: str) -> None:
        await self.page.get_by_label("Message", exact=True).fill(text)
        await self.page.keyboard.press("Enter")

    def outside(self) -> list[str]:
        """Requests that were not for this server."""
        host = urlsplit(self.url).netloc
        return [one.url for one in self.requests if urlsplit(one.url).netloc != host]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        server=ServerSettings(server_port=0, drain_timeout_s=0.0),
        engine=EngineSettings(engine="mock", mock_tokens_s=200),
        sessions=SessionSettings(data_dir=str(tmp_path)),
        warm=WarmSettings(drafts=False),  # a script is for what is sent
    )


@pytest.fixture
def engine(settings: Settings) -> FakeEngine:
    """Says what a test scripts, over the real server."""
    return FakeEngine(settings.engine)


@pytest_asyncio.fixture(loop_scope="session")
async def url(settings: Settings, engine: FakeEngine) -> AsyncIterator[str]:
    async with running_server(settings, engine) as server:
        await server.handle.wait_ready()
        yield server.url


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    """One Chromium for all these tests: starting it is their dearest part."""
    playwright_api = pytest.importorskip("playwright.async_api")
    playwright_api.expect.set_options(timeout=MAX_WAIT_MS)
    path = shutil.which("chromium") or shutil.which("google-chrome")
    async with playwright_api.async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="session")
async def page(browser: Browser) -> AsyncIterator[Page]:
    """A page of a browser that remembers nothing."""
    context = await browser.new_context()
    context.set_default_timeout(MAX_WAIT_MS)
    yield await context.new_page()
    await context.close()


@pytest_asyncio.fixture(loop_scope="session")
async def visit(url: str, page: Page) -> AsyncIterator[Visit]:
    """A page that must stay on its server."""
    visit = Visit(url, page)
    visit.watch()
    yield visit
    assert visit.outside() == []
