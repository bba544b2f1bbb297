"""Answers on the chat page outlive its reload, other tabs, and the server."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from lmserve.bridge.fake import FakeEngine
from lmserve.messages import LOWEST
from lmserve.server.lifecycle import running_server
from tests.browser.conftest import Visit
from tests.browser.talk import expect, last_answer, sees_answer, sees_line, sees_running

if TYPE_CHECKING:
    from playwright.async_api import Page, WebSocketRoute

    from lmserve.settings import Settings

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]
WORDS = [f"w{i} " for i in range(300)]
WHOLE = "".join(WORDS).strip()


async def test_a_reload_loses_no_token(visit: Visit, engine: FakeEngine) -> None:
    engine.will_say(*WORDS)
    page = visit.page
    await visit.open("/chat")
    await visit.ask("Count")
    await sees_running(page, "w5 ")
    engine.hang()
    await page.reload()
    await sees_running(page, "w5 ")
    assert not (await last_answer(page).locator(".markdown").inner_text()).endswith("w299")
    engine.resume()
    await sees_line(page, "Count", WHOLE)
    await sees_answer(page, WHOLE)
    await page.reload()
    await sees_line(page, "Count", WHOLE)


async def test_a_lost_connection_loses_no_token(visit: Visit, engine: FakeEngine) -> None:
    sockets: asyncio.Queue[WebSocketRoute] = asyncio.Queue()

    def connect(socket: WebSocketRoute) -> None:
        socket.connect_to_server()
        sockets.put_nowait(socket)

    words = [f"w{i} " for i in range(600)]
    engine.will_say(*words)
    page = visit.page
    await page.route_web_socket("**/v1/responses", connect)
    await visit.open("/chat")
    await visit.ask("Count")
    socket = await sockets.get()
    for _ in range(3):
        await sees_running(page, "w5 ")
        await socket.close(code=3001)
        engine.hang()  # so that the answer is not over before the page has come back
        socket = await sockets.get()
        engine.resume()
    await sees_answer(page, "".join(words).strip())
    assert sockets.empty()
    assert visit.problems == []


async def test_two_tabs_show_one_running_answer(visit: Visit, engine: FakeEngine) -> None:
    engine.will_hang("Once", " upon")
    page = visit.page
    await visit.open("/chat")
    other = await page.context.new_page()
    await other.goto(f"{visit.url}/chat")
    await visit.ask("A story")
    await sees_running(page, "Once upon")
    await other.get_by_role("button", name="A story", exact=True).click()
    await sees_running(other, "Once upon")
    engine.will_hang("A dog")
    await other.get_by_label("Message", exact=True).fill("Of a dog")
    await other.keyboard.press("Enter")
    for each in (page, other):
        await sees_line(each, "A story", "Once upon", "Of a dog", "A dog")
    await other.keyboard.press("Escape")
    for each in (page, other):
        await sees_answer(each, "A dog", "cancelled")
    await other.close()
    assert visit.problems == []


async def test_an_answer_that_the_server_cut_short_is_gone_on_with(
    settings: Settings, page: Page
) -> None:
    engine = FakeEngine(settings.engine)
    engine.will_hang("Once", " upon")
    async with running_server(settings, engine) as server:
        await engine.wait_ready()
        visit = Visit(server.url, page)
        await visit.open("/chat")
        await visit.ask("A story")
        await sees_running(page, "Once upon")
    port = urlsplit(server.url).port
    again = dataclasses.replace(settings.server, server_port=port)
    engine = FakeEngine(settings.engine)
    engine.will_say(" a time")
    await expect(page.locator("#banner")).to_be_visible()
    async with running_server(dataclasses.replace(settings, server=again), engine):
        await engine.wait_ready()
        await sees_answer(page, "Once upon", "incomplete")
        await expect(page.locator("#banner")).to_be_hidden()
        await expect(last_answer(page).locator(".stats")).to_contain_text("cut short")
        await page.get_by_role("button", name="Continue").click()
        await sees_answer(page, "Once upon a time")
        await page.reload()
        await sees_line(page, "A story", "Once upon a time")
        await page.goto("about:blank")


async def test_what_is_typed_is_run_ahead(settings: Settings, page: Page) -> None:
    warm = dataclasses.replace(settings.warm, drafts=True)
    engine = FakeEngine(settings.engine)
    engine.will_say("Hello")
    async with running_server(dataclasses.replace(settings, warm=warm), engine) as server:
        await engine.wait_ready()
        visit = Visit(server.url, page)
        await visit.open("/chat")
        await visit.ask("Hi")
        await sees_answer(page, "Hello")
        await page.get_by_label("Message", exact=True).press_sequentially("What is it now")
        async with asyncio.timeout(30):
            while all(submit.priority != LOWEST for submit in engine.submits):
                await page.evaluate("new Promise(requestAnimationFrame)")
        await page.goto("about:blank")
