"""Takes the pictures in docs/images with the built-in model: `python tests/browser/screenshots.py`.

Run it on an idle machine: the figures under the answers are in the picture.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import tempfile
from pathlib import Path

from playwright.async_api import Page, async_playwright, expect

from lmserve.server.lifecycle import running_server
from lmserve.settings import EngineSettings, ServerSettings, SessionSettings, Settings
from lmserve.weights.files import cache_dir, resolve

IMAGES = Path(__file__).parents[2] / "docs" / "images"
SETTINGS = '{"temperature": 0, "max_tokens": 110}'
MAX_WAIT_MS = 300_000


async def chat(page: Page) -> None:
    """Two chats in the sidebar, and one, edited, in the middle of its second answer."""
    await page.evaluate(f"localStorage.setItem('lmserve.settings', '{SETTINGS}')")
    for question in ("Write a short poem about the sea", "Why is the sky blue?"):
        await ask(page, question, after=20)
        await page.keyboard.press("Escape")
        await page.get_by_role("button", name="New chat").click()
    await ask(page, "Give me two facts about the Moon.", after=20)
    await page.keyboard.press("Escape")
    await page.locator(".user").hover()
    await page.get_by_role("button", name="Edit").click()
    await page.get_by_label("Edit message").fill("Give me three facts about the Moon.")
    await page.keyboard.press("Enter")
    await expect(page.locator(".user .count")).to_have_text("2/2")
    await expect(page.locator(".answer")).to_have_attribute("data-state", re.compile("complete"))
    await ask(page, "Write a short poem about it.", after=60)


async def ask(page: Page, question: str, after: int) -> None:
    """Ask, and wait until so many characters are answered."""
    num_answers = await page.locator(".answer").count()
    await page.get_by_label("Message", exact=True).fill(question)
    await page.keyboard.press("Enter")
    await expect(page.locator(".answer")).to_have_count(num_answers + 1)
    written = re.compile(f".{{{after}}}", re.DOTALL)
    await expect(page.locator(".answer .markdown").last).to_have_text(written)


async def main(folder: str) -> None:
    """Keeps conversations in that folder."""
    expect.set_options(timeout=MAX_WAIT_MS)
    model = await asyncio.to_thread(resolve, None, cache_dir(os.environ.get("LMSERVE_CACHE_DIR")))
    settings = Settings(
        server=ServerSettings(model_name=model.name),
        engine=EngineSettings(model=str(model.path), session_len=2048),
        sessions=SessionSettings(data_dir=folder),
    )
    async with running_server(settings) as server, async_playwright() as playwright:
        await server.handle.wait_ready()
        browser = await playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = await browser.new_page(viewport={"width": 1280, "height": 800})
        await page.goto(server.url)
        await expect(page.locator("#dot")).to_have_attribute("data-ready", "true")
        await expect(page.locator("#state strong")).not_to_be_empty()
        await page.screenshot(path=IMAGES / "api.png")
        await page.goto(f"{server.url}/chat")
        await chat(page)
        await page.mouse.move(640, 640)
        await page.screenshot(path=IMAGES / "chat.png")
        await browser.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(folder))
