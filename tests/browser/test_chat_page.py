"""The chat page, as a person uses it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lmserve.messages import unpack_ids
from tests.browser.talk import (
    edits,
    expect,
    is_at_version,
    last_answer,
    last_question,
    presses,
    row,
    sees_answer,
    sees_line,
    sees_running,
)

if TYPE_CHECKING:
    from lmserve.bridge.fake import FakeEngine

    from .conftest import Visit

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]


async def test_it_loads_without_errors(visit: Visit) -> None:
    await visit.open("/chat")
    await expect(visit.page.get_by_role("heading", name="What would you like")).to_be_visible()
    await expect(visit.page.locator("#model")).not_to_be_empty()
    await expect(visit.page.locator("#banner")).to_be_hidden()
    assert visit.problems == []


async def test_an_answer_shows_with_its_figures(visit: Visit, engine: FakeEngine) -> None:
    engine.will_say("Good", " morning", "!")
    page = visit.page
    await visit.open("/chat")
    await visit.ask("Hi")
    await sees_answer(page, "Good morning!")
    for figure in ("tok/s", "first token", "tokens reused"):
        await expect(last_answer(page).locator(".stats")).to_contain_text(figure)
    await expect(page.locator("#title")).to_have_text("Hi")
    await expect(page.get_by_label("Message", exact=True)).to_be_focused()
    assert visit.problems == []


@pytest.mark.parametrize("how", ["button", "escape"])
async def test_stop_ends_an_answer_that_can_be_gone_on_with(
    visit: Visit, engine: FakeEngine, how: str
) -> None:
    engine.will_hang("Once", " upon").will_say(" a time")
    page = visit.page
    await visit.open("/chat")
    await visit.ask("A story")
    await sees_answer(page, "Once upon", "in_progress")
    if how == "button":
        await page.get_by_role("button", name="Stop").click()
    else:
        await page.keyboard.press("Escape")
    await sees_answer(page, "Once upon", "cancelled")
    assert len(engine.aborts) == 1
    await page.get_by_role("button", name="Continue").click()
    await sees_answer(page, "Once upon a time")
    await is_at_version(last_answer(page), "2/2")


async def test_branches_are_made_and_switched(visit: Visit, engine: FakeEngine) -> None:
    engine.will_say("One").will_say("Two").will_say("Three").will_say("Four").will_say("Five")
    page = visit.page
    await visit.open("/chat")
    await visit.ask("first")
    await sees_answer(page, "One")
    await presses(last_answer(page), "Regenerate")
    await sees_line(page, "first", "Two")
    await is_at_version(last_answer(page), "2/2")
    await visit.ask("second")
    await sees_line(page, "first", "Two", "second", "Three")
    await edits(page, last_question(page), "other")
    await sees_line(page, "first", "Two", "other", "Four")
    await is_at_version(last_question(page), "2/2")
    await presses(last_question(page), "Previous version")
    await sees_line(page, "first", "Two", "second", "Three")
    await expect(last_question(page).get_by_role("button", name="Next version")).to_be_focused()
    await presses(page.locator(".answer").first, "Previous version")
    await sees_line(page, "first", "One")
    await visit.ask("third")  # goes on where one looks
    await sees_line(page, "first", "One", "third", "Five")
    await page.reload()
    await sees_line(page, "first", "One", "third", "Five")
    await presses(page.locator(".answer").first, "Next version")
    await sees_line(page, "first", "Two", "other", "Four")
    assert visit.problems == []


async def test_an_answer_is_steered_while_it_speaks(visit: Visit, engine: FakeEngine) -> None:
    engine.will_hang("The cat", " sat").will_hang("The dog").will_say("The end")
    page = visit.page
    await visit.open("/chat")
    await visit.ask("A story")
    await sees_running(page, "The cat sat")
    await visit.ask("About a dog")
    await sees_line(page, "A story", "The cat sat", "About a dog", "The dog")
    cut = page.locator(".answer").first
    await expect(cut).to_have_attribute("data-state", "incomplete")
    await expect(cut.locator(".stats")).to_contain_text("interrupted")
    await sees_running(page, "The dog")
    await visit.ask("Enough")
    await sees_line(page, "A story", "The cat sat", "About a dog", "The dog", "Enough", "The end")
    await sees_answer(page, "The end")
    assert visit.problems == []


async def test_conversations_are_kept_renamed_forked_and_deleted(
    visit: Visit, engine: FakeEngine
) -> None:
    engine.will_say("Blue").will_say("Green").will_say("Grey")
    page = visit.page
    await visit.open("/chat")
    await visit.ask("The sky?")
    await sees_answer(page, "Blue")
    await page.get_by_role("button", name="New chat").click()
    await visit.ask("The grass?")
    await sees_answer(page, "Green")
    await page.get_by_role("button", name="The sky?", exact=True).click()
    await sees_line(page, "The sky?", "Blue")
    await presses(row(page, "The sky?"), "Rename")
    await page.get_by_label("Conversation name").fill("Colours")
    await page.keyboard.press("Enter")
    await expect(page.locator("#title")).to_have_text("Colours")
    await presses(last_answer(page), "Fork from here")
    await expect(page.locator("#conversations li")).to_have_count(3)
    await visit.ask("At night?")
    await sees_line(page, "The sky?", "Blue", "At night?", "Grey")
    await presses(page.locator("#conversations li.current"), "Delete")
    await expect(page.locator("#conversations li")).to_have_count(2)
    await page.get_by_role("button", name="Undo").click()
    await expect(page.locator("#conversations li")).to_have_count(3)
    await page.reload()
    await page.locator("#conversations li").first.click()
    await sees_line(page, "The sky?", "Blue", "At night?", "Grey")
    assert visit.problems == []


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
    await expect(answer).to_have_attribute("data-state", "completed")
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
    await sees_answer(visit.page, "Here you are")


async def test_it_waits_for_an_engine_that_is_away(visit: Visit, engine: FakeEngine) -> None:
    engine.die()
    page = visit.page
    await visit.open("/chat")
    await expect(page.locator("#banner")).to_contain_text("restarting")
    await visit.ask("Hi")
    await expect(page.get_by_role("button", name="Retry")).to_be_visible()
    engine.will_say("Back").resume()
    await expect(page.locator("#banner")).to_be_hidden()
    await page.get_by_role("button", name="Retry").click()
    await sees_answer(page, "Back")


async def test_it_says_how_long_one_waits(visit: Visit, engine: FakeEngine) -> None:
    engine.will_queue(1).will_hang("I speak").will_say("Me, too").will_say("At last")
    page = visit.page
    await visit.open("/chat")
    await visit.ask("First")
    await sees_running(page, "I speak")
    for question in ("Second", "Third"):
        await page.get_by_role("button", name="New chat").click()
        await visit.ask(question)
        await expect(row(page, question)).to_have_class("current")
    await expect(last_answer(page).locator(".wait")).to_contain_text("1 before you")
    await page.get_by_role("button", name="First", exact=True).click()
    await sees_running(page, "I speak")
    await page.keyboard.press("Escape")
    await page.get_by_role("button", name="Third", exact=True).click()
    await sees_answer(page, "At last")


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
    await sees_answer(page, "Oui")
    [submit] = engine.submits
    assert (submit.sampling.temperature, submit.sampling.seed) == (0.5, 7)
    assert b"Speak French" in bytes(id for id in unpack_ids(submit.token_ids) if id < 256)
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
    await expect(last_answer(visit.page)).to_have_attribute("data-state", "cancelled")
    await expect(visit.page.get_by_text("line 0", exact=True)).to_be_in_viewport()
    await visit.page.get_by_role("button", name="Jump to the latest").click()
    await expect(visit.page.get_by_text("line 59", exact=True)).to_be_in_viewport()
