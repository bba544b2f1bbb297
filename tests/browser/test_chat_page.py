"""The chat page, as a person uses it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

if TYPE_CHECKING:
    from playwright.async_api import Locator, Page

    from lmserve.bridge.fake import FakeEngine

    from .conftest import Visit

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]
expect = pytest.importorskip("playwright.async_api").expect


def last_answer(page: Page) -> Locator:
    return page.locator(".answer").last


async def sees_answer(visit: Visit, text: str, state: str = "done") -> None:
    answer = last_answer(visit.page)
    await expect(answer).to_have_attribute("data-state", state)
    await expect(answer.locator(".markdown")).to_have_text(text)


def sent(visit: Visit) -> list[dict[str, Any]]:
    """The bodies of the chat requests so far."""
    posts = [one for one in visit.requests if one.url.endswith("/v1/chat/completions")]
    return [one.post_data_json for one in posts]


async def running(url: str) -> str:
    """What /metrics says is running."""
    async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as response:
        lines = (await response.text()).splitlines()
    return next(line for line in lines if line.startswith("vllm:num_requests_running")).split()[-1]


async def test_it_loads_without_errors(visit: Visit) -> None:
    await visit.open("/chat")
    await expect(visit.page.get_by_role("heading", name="What would you like")).to_be_visible()
    await expect(visit.page.locator("#model")).not_to_be_empty()
    await expect(visit.page.locator("#banner")).to_be_hidden()
    assert visit.problems == []


async def test_an_answer_shows_with_its_figures(visit: Visit, engine: FakeEngine) -> None:
    engine.will_say("Good", " morning", "!")
    await visit.open("/chat")
    await visit.ask("Hi")
    await sees_answer(visit, "Good morning!")
    await expect(last_answer(visit.page).locator(".stats")).to_contain_text("tok/s")
    await expect(last_answer(visit.page).locator(".stats")).to_contain_text("first token")
    [body] = sent(visit)
    assert body["messages"] == [{"role": "user", "content": "Hi"}]
    assert body["stream_options"] == {"include_usage": True}
    assert visit.problems == []


@pytest.mark.parametrize("how", ["button", "escape"])
async def test_an_answer_shows_while_it_is_written_and_stop_ends_it(
    visit: Visit, engine: FakeEngine, how: str
) -> None:
    engine.will_hang("Once", " upon")
    await visit.open("/chat")
    await visit.ask("A story")
    await sees_answer(visit, "Once upon", "streaming")
    assert await running(visit.url) in ("1", "1.0")
    if how == "button":
        await visit.page.get_by_role("button", name="Stop").click()
    else:
        await visit.page.keyboard.press("Escape")
    await sees_answer(visit, "Once upon", "stopped")
    while await running(visit.url) not in ("0", "0.0"):
        pass  # the test's own timeout ends this
    assert len(engine.aborts) == 1
    await expect(visit.page.get_by_role("button", name="Send")).to_be_visible()


async def test_regenerate_asks_again(visit: Visit, engine: FakeEngine) -> None:
    engine.will_say("One").will_say("Two")
    await visit.open("/chat")
    await visit.ask("Hi")
    await sees_answer(visit, "One")
    await visit.page.get_by_role("button", name="Regenerate").click()
    await sees_answer(visit, "Two")
    await expect(visit.page.locator(".message")).to_have_count(2)
    first, second = sent(visit)
    assert first["messages"] == second["messages"]


async def test_an_edit_drops_what_came_after(visit: Visit, engine: FakeEngine) -> None:
    engine.will_say("One").will_say("Two").will_say("Three")
    await visit.open("/chat")
    await visit.ask("first")
    await sees_answer(visit, "One")
    await visit.ask("second")
    await sees_answer(visit, "Two")
    await visit.page.locator(".user").first.hover()
    await visit.page.get_by_role("button", name="Edit").first.click()
    await visit.page.get_by_label("Edit message").fill("changed")
    await visit.page.keyboard.press("Enter")
    await sees_answer(visit, "Three")
    await expect(visit.page.locator(".message")).to_have_count(2)
    assert sent(visit)[-1]["messages"] == [{"role": "user", "content": "changed"}]


async def test_conversations_outlive_a_reload(visit: Visit, engine: FakeEngine) -> None:
    engine.will_say("Blue").will_say("Green")
    page = visit.page
    await visit.open("/chat")
    await visit.ask("The sky?")
    await sees_answer(visit, "Blue")
    await page.get_by_role("button", name="New chat").click()
    await visit.ask("The grass?")
    await sees_answer(visit, "Green")
    await page.reload()
    await sees_answer(visit, "Green")
    await page.get_by_role("button", name="The sky?", exact=True).click()
    await sees_answer(visit, "Blue")


async def test_conversations_are_renamed_and_deleted(visit: Visit, engine: FakeEngine) -> None:
    engine.will_say("Blue")
    page = visit.page
    await visit.open("/chat")
    await visit.ask("The sky?")
    await sees_answer(visit, "Blue")
    row = page.locator("#conversations li")
    await row.hover()
    await row.get_by_role("button", name="Rename").click()
    await page.get_by_label("Conversation name").fill("Colours")
    await page.keyboard.press("Enter")
    await expect(page.locator("#title")).to_have_text("Colours")
    await row.hover()
    await row.get_by_role("button", name="Delete").click()
    await expect(row).to_have_count(0)
    await page.get_by_role("button", name="Undo").click()
    await expect(row).to_have_text("Colours")
    await page.reload()
    await expect(row).to_have_text("Colours")


async def test_model_text_stays_text(visit: Visit, engine: FakeEngine) -> None:
    hostile = (
        "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>\n\n"
        "[a](javascript:window.hacked=3) [b](https://example.org/) **bold** `<b>code</b>`\n\n"
        "```html\n<script>window.hacked = 4</script>\n```"
    )
    engine.will_say(hostile)
    await visit.open("/chat")
    await visit.ask("<b>mine</b>")
    answer = last_answer(visit.page)
    await expect(answer).to_have_attribute("data-state", "done")
    await expect(visit.page.locator(".bubble")).to_have_text("<b>mine</b>")
    await expect(answer).to_contain_text("<script>window.hacked = 1</script>")
    await expect(answer).to_contain_text("[a](javascript:window.hacked=3)")
    await expect(answer.locator("strong")).to_have_text("bold")
    await expect(answer.locator("pre")).to_have_text("<script>window.hacked = 4</script>")
    await expect(answer.locator("script, img, b")).to_have_count(0)
    [link] = await answer.locator("a").all()
    assert await link.get_attribute("href") == "https://example.org/"
    assert "noopener" in str(await link.get_attribute("rel"))
    assert await visit.page.evaluate("window.hacked") is None
    assert visit.problems == []


async def test_a_failed_answer_can_be_retried(visit: Visit, engine: FakeEngine) -> None:
    engine.will_fail("out of luck", "Let me").will_say("Here you are")
    await visit.open("/chat")
    await visit.ask("Hi")
    await expect(visit.page.get_by_role("alert")).to_contain_text("out of luck")
    await visit.page.get_by_role("button", name="Retry").click()
    await sees_answer(visit, "Here you are")


async def test_it_waits_for_an_engine_that_is_away(visit: Visit, engine: FakeEngine) -> None:
    engine.die()
    await visit.open("/chat")
    await expect(visit.page.locator("#banner")).to_contain_text("restarting")
    await visit.ask("Hi")
    await expect(visit.page.get_by_role("button", name="Retry")).to_be_visible()
    engine.will_say("Back").resume()
    await expect(visit.page.locator("#banner")).to_be_hidden()
    await visit.page.get_by_role("button", name="Retry").click()
    await sees_answer(visit, "Back")


async def test_settings_go_into_the_request(visit: Visit, engine: FakeEngine) -> None:
    engine.will_say("Oui")
    page = visit.page
    await visit.open("/chat")
    await page.get_by_role("button", name="Settings").click()
    await page.get_by_label("System prompt").fill("Speak French")
    await page.get_by_label("Temperature").fill("0.5")
    await page.get_by_label("Seed").fill("7")
    await page.get_by_role("button", name="Done").click()
    await visit.ask("Yes?")
    await sees_answer(visit, "Oui")
    [body] = sent(visit)
    assert body["messages"][0] == {"role": "system", "content": "Speak French"}
    assert (body["temperature"], body["seed"]) == (0.5, 7)
    assert "top_p" not in body
    assert visit.problems == []


async def test_following_the_answer_does_not_fight_the_reader(
    visit: Visit, engine: FakeEngine
) -> None:
    lines = "\n\n".join(f"line {i}" for i in range(60))
    engine.will_hang(lines).will_say("short")
    await visit.open("/chat")
    await visit.ask("Count")
    await expect(last_answer(visit.page)).to_contain_text("line 59")
    scroller = visit.page.locator("#scroller")
    await expect(visit.page.get_by_text("line 59", exact=True)).to_be_in_viewport()
    await scroller.hover()
    await visit.page.mouse.wheel(0, -3000)
    await expect(visit.page.get_by_text("line 0", exact=True)).to_be_in_viewport()
    await visit.page.keyboard.press("Escape")
    await expect(last_answer(visit.page)).to_have_attribute("data-state", "stopped")
    await expect(visit.page.get_by_text("line 0", exact=True)).to_be_in_viewport()
    await visit.page.get_by_role("button", name="Jump to the latest").click()
    await expect(visit.page.get_by_text("line 59", exact=True)).to_be_in_viewport()
