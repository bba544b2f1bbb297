"""`lmserve serve gradio`: its own process in front of a real server, as a person uses it."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from lmserve.bridge.fake import FakeEngine
from lmserve.messages import unpack_ids
from lmserve.server.lifecycle import running_server
from lmserve.settings import EngineSettings, ServerSettings, SessionSettings, Settings

from .conftest import Visit

if TYPE_CHECKING:
    from playwright.async_api import Browser, Locator

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]
pytest.importorskip("gradio")
expect = pytest.importorskip("playwright.async_api").expect
ROOT = Path(__file__).resolve().parents[2]
ENGINE = EngineSettings(engine="mock", session_len=1024)


@pytest.fixture(scope="module")
def engine() -> FakeEngine:
    return FakeEngine(ENGINE)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def url(engine: FakeEngine, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """The playground's, which `visit` opens: one process for all these tests."""
    home = tmp_path_factory.mktemp("home")
    settings = Settings(
        server=ServerSettings(server_port=0, drain_timeout_s=0.0, api_keys=("key",)),
        engine=ENGINE,
        sessions=SessionSettings(data_dir=str(home / "data")),
    )
    async with running_server(settings, engine) as server:
        await server.handle.wait_ready()
        command = ["serve", "gradio", server.url, "--server-name", "127.0.0.1"]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "lmserve", *command, "--server-port", "0", "--api-key", "key",
            cwd=ROOT, stdout=PIPE, stderr=PIPE, env={**os.environ, "HOME": str(home)},
        )  # fmt: skip
        try:
            assert process.stdout is not None
            words = (await process.stdout.readline()).decode().split()
            assert words[:3] == ["playground", "of", "mock:"]
            yield words[3]
            process.terminate()
            assert (await process.communicate(), process.returncode) == ((b"", b""), 0)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


@pytest.fixture(autouse=True)
def nothing_left_to_say(engine: FakeEngine) -> None:
    """One test's failure is not the next one's."""
    engine._scripts.clear()


@pytest.fixture
def first_prompt(engine: FakeEngine) -> int:
    """Of this test, among all."""
    return len(engine.submits)


def asked(engine: FakeEngine, first: int) -> list[str]:
    """The prompts: in the mock's vocabulary a byte is a token."""
    return [
        bytes(token for token in unpack_ids(one.token_ids) if token < 256).decode()
        for one in engine.submits[first:]
    ]


def instruction(visit: Visit) -> Locator:
    return visit.page.get_by_label("Instruction")


def button(visit: Visit, name: str) -> Locator:
    return visit.page.get_by_role("button", name=name, exact=True)


async def ask(visit: Visit, text: str) -> None:
    await instruction(visit).fill(text)
    await instruction(visit).press("Enter")


async def sees(visit: Visit, text: str) -> None:
    await expect(visit.page.locator("#conversation .bot").last).to_contain_text(text)


async def is_answered(visit: Visit, text: str) -> None:
    await sees(visit, text)
    await expect(button(visit, "Cancel")).to_be_disabled()
    await expect(button(visit, "Reset")).to_be_enabled()


async def test_a_conversation_and_reset(
    visit: Visit, engine: FakeEngine, first_prompt: int
) -> None:
    engine.will_say("Good", " morning").will_say("Red").will_say("New")
    await visit.open("/")
    await expect(visit.page.get_by_role("heading", name="lmserve Playground")).to_be_visible()
    await expect(visit.page.locator("#conversation")).to_contain_text("mock")  # its label
    await ask(visit, "Hi there")
    await is_answered(visit, "Good morning")
    await expect(instruction(visit)).to_have_value("")
    await ask(visit, "Which colour?")
    await is_answered(visit, "Red")
    await button(visit, "Reset").click()
    await expect(visit.page.locator("#conversation")).not_to_contain_text("Red")
    await ask(visit, "Again")
    await is_answered(visit, "New")
    _, second, third = asked(engine, first_prompt)
    assert "Hi there" in second and "Good morning" in second
    assert "Good" not in third and "Red" not in third
    sampling = engine.submits[first_prompt].sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (512, 0.7, 0.8)
    assert visit.problems == []


async def test_cancel_keeps_what_was_said(
    visit: Visit, engine: FakeEngine, first_prompt: int
) -> None:
    num_aborts = len(engine.aborts)
    engine.will_hang("Once", " upon").will_say("Red")
    await visit.open("/")
    await ask(visit, "A story")
    await sees(visit, "Once upon")
    await expect(button(visit, "Reset")).to_be_disabled()
    await button(visit, "Cancel").click()
    await is_answered(visit, "Once upon")
    assert len(engine.aborts) == num_aborts + 1
    await ask(visit, "Which colour?")
    await is_answered(visit, "Red")
    assert asked(engine, first_prompt)[1].count("Once upon") == 1
    assert visit.problems == []


async def test_pages_do_not_meet(
    visit: Visit, browser: Browser, engine: FakeEngine, first_prompt: int
) -> None:
    context = await browser.new_context()
    try:
        other = Visit(visit.url, await context.new_page())
        await asyncio.gather(visit.open("/"), other.open("/"))
        engine.will_hang("Never ending").will_say("Yellow").will_say("Green")
        await ask(visit, "A story")
        await sees(visit, "Never ending")
        await ask(other, "Which colour?")  # while the other page is answered
        await is_answered(other, "Yellow")
        await ask(other, "Another")
        await is_answered(other, "Green")
    finally:
        await context.close()
    _, second, third = asked(engine, first_prompt)
    assert "story" not in second + third
    assert "Yellow" in third
    num_aborts = len(engine.aborts)
    await visit.page.close()  # ends its session, and so its answer
    async with asyncio.timeout(20):
        while len(engine.aborts) == num_aborts:  # noqa: ASYNC110  (nothing tells of it)
            await asyncio.sleep(0.02)


async def test_a_failed_turn_can_be_asked_again(
    visit: Visit, engine: FakeEngine, first_prompt: int
) -> None:
    engine.will_say("Yellow").will_fail("out of <luck>", "Let").will_say("Fine")
    await visit.open("/")
    await ask(visit, "Which colour?")
    await is_answered(visit, "Yellow")
    await ask(visit, "Sing")
    await expect(visit.page.locator(".toast-body")).to_contain_text("out of <luck>")
    await expect(instruction(visit)).to_have_value("Sing")
    await is_answered(visit, "Yellow")
    await instruction(visit).press("Enter")
    await is_answered(visit, "Fine")
    last = asked(engine, first_prompt)[-1]  # in a new session, to which all was told
    assert "Which colour?" in last and "Yellow" in last and last.count("Sing") == 1
    assert visit.problems == []


async def test_length_is_told(visit: Visit, engine: FakeEngine) -> None:
    engine.will_say("abc", finish="length")
    await visit.open("/")
    await ask(visit, "Hi")
    await is_answered(visit, "abc")
    await expect(visit.page.locator(".toast-body")).to_contain_text("cut after 3 tokens")
    await ask(visit, "x" * 1200)
    await expect(visit.page.locator(".toast-body").last).to_contain_text("session is full")
    await is_answered(visit, "abc")
    assert visit.problems == []
