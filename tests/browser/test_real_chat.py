"""One chat with the built-in model in its own process: nothing between page and answer is fake."""

from __future__ import annotations

import asyncio
import os
import re
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from lmserve.errors import ModelError
from lmserve.server.lifecycle import running_server
from lmserve.settings import EngineSettings, ServerSettings, SessionSettings, Settings
from lmserve.weights.files import cache_dir, resolve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from .conftest import Visit

pytestmark = [
    pytest.mark.browser,
    pytest.mark.network,  # to fetch the model, where it is not in the cache
    pytest.mark.timeout(180),
    pytest.mark.asyncio(loop_scope="session"),
]
expect = pytest.importorskip("playwright.async_api").expect
MAX_ANSWER_MS = 120_000


@pytest_asyncio.fixture(loop_scope="session")
async def url(tmp_path: Path) -> AsyncIterator[str]:
    """In place of the scripted engine's: the page opens while the model is still loading."""
    try:
        folder = cache_dir(os.environ.get("LMSERVE_CACHE_DIR"))
        model = await asyncio.to_thread(resolve, None, folder)
    except ModelError as error:
        pytest.skip(f"the built-in model cannot be had: {error}")
    settings = Settings(
        server=ServerSettings(server_port=0, drain_timeout_s=0.0),
        engine=EngineSettings(model=str(model.path), session_len=512, cache_max_entry_count=0.02),
        sessions=SessionSettings(data_dir=str(tmp_path)),
    )
    async with running_server(settings) as server:
        yield server.url


async def test_the_built_in_model_answers_through_a_reload(visit: Visit) -> None:
    page = visit.page
    await visit.open("/chat")
    await expect(page.locator("#model")).to_contain_text("SmolLM2", timeout=MAX_ANSWER_MS)
    await page.evaluate(
        "localStorage.setItem('lmserve.settings', '{\"temperature\": 0, \"max_tokens\": 40}')"
    )
    await visit.ask("Write a story about the sea.")
    answer = page.locator(".answer")
    await expect(answer.locator(".markdown")).to_have_text(
        re.compile(r"\w+"), timeout=MAX_ANSWER_MS
    )
    await page.reload()
    await expect(answer).to_have_attribute("data-state", "incomplete", timeout=MAX_ANSWER_MS)
    await expect(answer.locator(".stats")).to_contain_text("token limit reached")
    cut = (await answer.locator(".markdown").inner_text()).strip()
    await page.reload()
    await expect(answer.locator(".markdown")).to_have_text(cut)  # now it comes from disk
    await page.get_by_role("button", name="Continue").click()
    await expect(answer.locator(".count")).to_have_text("2/2", timeout=MAX_ANSWER_MS)
    await expect(answer.locator(".markdown")).to_contain_text(cut)
    await expect(answer.locator(".stats")).to_contain_text(
        re.compile(r"[1-9]\d* of \d+ tokens reused")
    )
