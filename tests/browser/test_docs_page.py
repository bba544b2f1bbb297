"""The API documentation page, rendered from the server's own /openapi.json."""

from __future__ import annotations

from typing import TYPE_CHECKING

import aiohttp
import pytest

if TYPE_CHECKING:
    from lmserve.bridge.fake import FakeEngine

    from .conftest import Visit

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]
expect = pytest.importorskip("playwright.async_api").expect
METHODS = {"get", "post", "put", "patch", "delete"}


async def test_it_lists_every_operation(visit: Visit) -> None:
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{visit.url}/openapi.json") as response:
            paths = (await response.json())["paths"]
    documented = {
        f"{method.upper()} {path}" for path, item in paths.items() for method in METHODS & set(item)
    }
    await visit.open("/")
    await expect(visit.page.locator("#dot")).to_have_attribute("data-ready", "true")
    await expect(visit.page.locator(".operation")).to_have_count(len(documented))
    shown = set()
    for operation in await visit.page.locator(".operation > summary").all():
        method = await operation.locator(".method").inner_text()
        shown.add(f"{method} {await operation.locator('.path').inner_text()}")
        await operation.click()
    assert shown == documented
    await expect(visit.page.locator(".operation-body")).to_have_count(len(documented))
    assert visit.problems == []


async def test_each_kind_of_an_item_has_its_fields(visit: Visit) -> None:
    await visit.open("/#get-v1-responses-response_id-")
    answer = visit.page.locator("#get-v1-responses-response_id- .response").first
    await answer.locator("summary").click()
    for kind in ("ResponseOutputMessage", "ResponseOutputReasoning", "ResponseFunctionCall"):
        await expect(answer.locator("tr.kind").filter(has_text=kind)).to_be_visible()
    await expect(answer.get_by_text("output[].arguments", exact=True)).to_be_visible()
    assert visit.problems == []


async def test_try_it_sends_a_get(visit: Visit) -> None:
    await visit.open("/#get-v1-models")
    box = visit.page.locator("#get-v1-models .try")
    await box.get_by_role("button", name="Send").click()
    await expect(box.locator(".answer-head")).to_contain_text("200")
    await expect(box.locator(".answer-body")).to_contain_text('"object": "list"')
    assert visit.problems == []


async def test_try_it_sends_a_form_with_a_file(visit: Visit) -> None:
    await visit.open("/#post-v1-files")
    operation = visit.page.locator("#post-v1-files")
    await expect(operation.locator(".code").first).to_contain_text("-F file=@requests.jsonl")
    await operation.locator("input[type=file]").set_input_files(
        {"name": "mine.jsonl", "mimeType": "application/jsonl", "buffer": b"{}\n"}
    )
    await operation.get_by_role("button", name="Send").click()
    await expect(operation.locator(".answer-head")).to_contain_text("200")
    await expect(operation.locator(".answer-body")).to_contain_text('"filename": "mine.jsonl"')
    await expect(operation.locator(".answer-body")).to_contain_text('"purpose": "batch"')
    assert visit.problems == []


async def test_try_it_shows_a_stream_as_it_arrives(visit: Visit, engine: FakeEngine) -> None:
    engine.will_hang("Once", " upon")
    await visit.open("/#post-v1-chat-completions")
    operation = visit.page.locator("#post-v1-chat-completions")
    await expect(operation.locator(".code").first).to_contain_text(f"curl {visit.url}/v1/chat")
    await operation.get_by_role("button", name="Send").click()
    await expect(operation.locator(".answer-body")).to_contain_text("Once")
    await operation.get_by_role("button", name="Stop").click()
    await expect(operation.locator(".answer-head")).to_contain_text("stopped")


async def test_a_missing_description_is_said(visit: Visit) -> None:
    await visit.page.route("**/openapi.json", lambda route: route.fulfill(status=404, body="gone"))
    await visit.open("/")
    await expect(visit.page.get_by_role("alert")).to_contain_text("/openapi.json")
