"""A server whose disk takes no more: told clearly, nobody else is touched, and it comes back."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from tests.e2e.conftest import serving
from tests.e2e.writers import data_lines

LONG = "word " * 1000
DISK = ("store_error", "could not be kept")


@contextmanager
def full_disk(pid: int, data: Path) -> Iterator[None]:
    """No file of that process grows any more."""
    largest = max(file.stat().st_size for file in data.glob("sessions.sqlite3*"))
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


async def call(http: Any, path: str, status: int = 200, **body: Any) -> Any:
    async with http.post(path, json=body) if body else http.get(path) as response:
        answer = await response.json(content_type=None)
        assert response.status == status, answer
        return answer


async def refused(http: Any, path: str, **body: Any) -> None:
    error = (await call(http, path, 500, **body))["error"]
    assert error["code"] == DISK[0]
    assert DISK[1] in error["message"]


@asynccontextmanager
async def answering(http: Any) -> AsyncIterator[tuple[str, AsyncIterator[bytes]]]:
    """One that is in its middle when the block begins."""
    body = {"input": "mid", "stream": True, "max_output_tokens": 60}
    async with http.post("/v1/responses", json=body) as response:
        lines = data_lines(response)
        created = orjson.loads(await anext(lines))
        yield created["response"]["id"], lines


async def test_a_full_disk_is_told_and_costs_nothing_that_was_kept(tmp_path):
    args = ("--engine", "mock", "--mock-tokens-s", "40", "--log-level", "warning")
    with serving(*args, "--data-dir", str(tmp_path)) as server:
        async with aiohttp.ClientSession(server.url) as http:
            first = await call(http, "/v1/responses", input="hi", max_output_tokens=5)
            await call(http, "/v1/responses", input=LONG, max_output_tokens=5)
            async with answering(http) as (cut, lines):
                with full_disk(server.pid, tmp_path):
                    told = [data async for data in lines]
                    await check_refusals(http)
                    assert await call(http, f"/v1/responses/{first['id']}") == first
            failed = orjson.loads(told[-1])
            assert failed["type"] == "response.failed"
            assert failed["response"]["error"]["type"] == DISK[0]
            further = {"input": "on", "previous_response_id": first["id"], "max_output_tokens": 5}
            assert (await call(http, "/v1/responses", **further))["output"]
            await until_kept(http, failed["response"])
    with serving(*args, "--data-dir", str(tmp_path)) as server:
        async with aiohttp.ClientSession(server.url) as http:
            assert await call(http, f"/v1/responses/{first['id']}") == first
            assert await call(http, f"/v1/responses/{cut}") == failed["response"]
            query = "?stream=true&starting_after=0"
            async with http.get(f"/v1/responses/{cut}{query}") as response:
                assert [data async for data in data_lines(response)] == told


async def check_refusals(http: Any) -> None:
    await refused(http, "/v1/responses", input=LONG, max_output_tokens=5)
    await refused(http, "/v1/sessions", messages=[{"role": "user", "content": LONG}])
    said = {"session_id": 5, "interactive_mode": True, "request_output_len": 3}
    answer = await call(http, "/v1/chat/interactive", prompt=LONG, **said)
    assert (answer["finish_reason"], DISK[1] in answer["text"]) == ("error", True)
    plain = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
    assert (await call(http, "/v1/chat/completions", **plain))["choices"]
    async with http.ws_connect("/v1/responses") as socket:
        await socket.send_json({"type": "response.create", "input": LONG, "event_id": "7"})
        error = await socket.receive_json(timeout=20)
        assert (error["type"], error["event_id"]) == ("error", "7")
        assert error["error"]["code"] == DISK[0]


async def until_kept(http: Any, response: dict[str, Any]) -> None:
    """As it was told, with room on the disk again."""
    path = f"/v1/sessions/{response['session']}/messages?tree=true"
    async with asyncio.timeout(30):
        while True:
            (answer,) = (m for m in (await call(http, path))["data"] if m["role"] == "assistant")
            if answer["status"] != "in_progress":
                break
            await asyncio.sleep(0.1)
    assert answer["status"] == "failed"
    assert answer["content"] == response["output"][0]["content"][0]["text"]
