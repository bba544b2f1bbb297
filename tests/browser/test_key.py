"""The pages of a server that asks for an API key."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from lmserve.bridge.fake import FakeEngine
    from lmserve.settings import Settings

    from .conftest import Visit

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]
expect = pytest.importorskip("playwright.async_api").expect
KEY = "sk-the.key~1"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return dataclasses.replace(
        settings, server=dataclasses.replace(settings.server, api_keys=(KEY,))
    )


async def give(visit: Visit, key: str) -> None:
    dialog = visit.page.get_by_role("dialog", name="API key")
    await dialog.get_by_label("Key", exact=True).fill(key)
    await visit.page.keyboard.press("Enter")


async def test_the_chat_asks_for_the_key_until_it_is_right(
    visit: Visit, engine: FakeEngine
) -> None:
    engine.will_say("Good", " morning")
    await visit.open("/chat")
    dialog = visit.page.get_by_role("dialog", name="API key")
    await expect(dialog).to_contain_text("answers only to those who have a key")
    await give(visit, "sk-wrong")
    await expect(dialog).to_contain_text("not known to the server")
    await give(visit, f" {KEY} ")
    await expect(dialog).to_have_count(0)
    await expect(visit.page.locator("#model")).not_to_be_empty()
    await visit.ask("Hi")
    await expect(visit.page.locator(".answer .markdown")).to_have_text("Good morning")
    await visit.page.reload()  # kept in this tab
    await expect(visit.page.locator("#model")).not_to_be_empty()
    await expect(dialog).to_have_count(0)
    assert KEY not in await visit.page.evaluate("JSON.stringify(localStorage)")
    assert all(KEY not in one.url for one in visit.requests)


async def test_a_chat_without_a_key_says_so_and_asks_again(
    visit: Visit, engine: FakeEngine
) -> None:
    engine.will_say("Here")
    await visit.open("/chat")
    dialog = visit.page.get_by_role("dialog", name="API key")
    await dialog.get_by_role("button", name="Cancel").click()
    await expect(visit.page.locator("#toast")).to_contain_text("API key")
    await visit.ask("Hi")
    await expect(dialog).to_be_visible()
    await visit.page.keyboard.press("Escape")
    answer = visit.page.locator(".answer").last
    await expect(answer).to_contain_text("An API key is needed")
    await answer.get_by_role("button", name="Retry").click()
    await give(visit, KEY)
    await expect(visit.page.locator(".answer .markdown")).to_have_text("Here")


async def test_the_documentation_asks_once(visit: Visit) -> None:
    await visit.open("/")
    await give(visit, KEY)
    await expect(visit.page.locator("#state")).to_contain_text("Serving")
    await expect(visit.page.locator(".operation").first).to_be_visible()
    await expect(visit.page.locator("#snippets")).to_contain_text("Bearer $API_KEY")
    await visit.page.locator(".links").get_by_role("link", name="metrics").click()
    box = visit.page.locator("#get-metrics .try")
    await box.get_by_role("button", name="Send").click()
    await expect(box.locator(".answer-head")).to_contain_text("200")
    assert await visit.page.get_by_role("dialog").count() == 0
    assert KEY not in await visit.page.content()


async def test_a_documentation_without_a_key_says_so(visit: Visit) -> None:
    await visit.open("/")
    await visit.page.get_by_role("button", name="Cancel").click()
    await expect(visit.page.locator("#state")).to_contain_text("asks for an API key")
    await visit.page.get_by_role("button", name="Enter the key").click()
    await give(visit, KEY)
    await expect(visit.page.locator("#state")).to_contain_text("Serving")
