"""The chat page of a distributor: a conversation is one node's, the list is another's."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

import httpx2
import pytest

from lmserve.distributor.app import running_proxy
from lmserve.server.lifecycle import running_server
from lmserve.settings import SessionSettings
from tests.browser.talk import expect
from tests.distributor.nodes import QUICK, listen

from .conftest import MAX_WAIT_MS, Visit

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.async_api import Page

    from lmserve.settings import Settings

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

SAID = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Good morning!"}]


def is_list(frame: str | bytes) -> bool:
    return "session.list.done" in str(frame)


async def test_no_conversation_is_taken_for_deleted(
    settings: Settings, tmp_path: Path, page: Page
) -> None:
    async with AsyncExitStack() as stack:
        urls = []
        for name in ("one", "two"):
            own = replace(settings, sessions=SessionSettings(data_dir=str(tmp_path / name)))
            node = await stack.enter_async_context(running_server(own))
            await node.handle.wait_ready()
            urls.append(node.url)
        listener = listen()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        await stack.enter_async_context(running_proxy(replace(QUICK, nodes=tuple(urls)), listener))
        visit = Visit(url, page)
        visit.watch()
        http = await stack.enter_async_context(httpx2.AsyncClient())
        for node_url in urls:
            made = await http.post(f"{node_url}/v1/sessions", json={"messages": SAID})
            await page.goto("about:blank")  # to another fragment it would not load anew
            async with page.expect_websocket() as opened:
                await visit.open(f"/chat#{made.json()['id']}")
            await expect(page.get_by_text("Good morning!")).to_be_visible()
            for _ in range(2):  # the list is looked at again and again
                await (await opened.value).wait_for_event(
                    "framereceived", is_list, timeout=MAX_WAIT_MS
                )
            await expect(page.get_by_text("Good morning!")).to_be_visible()
            assert page.url.endswith(made.json()["id"])
        await page.goto("about:blank")
        assert (
            sum(one.url.endswith("/health") for one in visit.requests) == 2
        )  # it is ready at once
        assert visit.problems == []
