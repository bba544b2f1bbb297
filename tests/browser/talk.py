"""What a person does and sees on the chat page."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.async_api import Locator, Page

expect = pytest.importorskip("playwright.async_api").expect


def last_answer(page: Page) -> Locator:
    return page.locator(".answer").last


def last_question(page: Page) -> Locator:
    return page.locator(".user").last


async def sees_answer(page: Page, text: str, state: str = "completed") -> None:
    answer = last_answer(page)
    await expect(answer.locator(".markdown")).to_have_text(text)
    await expect(answer).to_have_attribute("data-state", state)


async def sees_running(page: Page, text: str) -> None:
    """An answer that has said this so far, and perhaps more."""
    answer = last_answer(page)
    await expect(answer.locator(".markdown")).to_contain_text(text)
    await expect(answer).to_have_attribute("aria-busy", "true")


async def sees_line(page: Page, *texts: str) -> None:
    """All that is shown, questions and answers."""
    await expect(page.locator(".bubble, .markdown")).to_have_text(list(texts))


async def presses(of: Locator, name: str) -> None:
    """A button of a message or a row, which shows under the pointer."""
    await of.hover()
    await of.get_by_role("button", name=name, exact=True).click()


async def edits(page: Page, question: Locator, text: str) -> None:
    await presses(question, "Edit")
    await page.get_by_label("Edit message").fill(text)
    await page.keyboard.press("Enter")


async def is_at_version(message: Locator, place: str) -> None:
    await expect(message.locator(".count")).to_have_text(place)


def row(page: Page, title: str) -> Locator:
    """In the sidebar."""
    name = re.compile(f"^{re.escape(title)}$")
    return page.locator("#conversations li").filter(has=page.get_by_role("button", name=name))
