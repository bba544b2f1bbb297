"""SIGTERM under load: what was accepted ends once, what comes is told to go elsewhere."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import aiohttp
import orjson

from tests.server.test_serve import CHAT, Serving, serving

MANY = 12


async def streamed(http: aiohttp.ClientSession, max_tokens: int, begun: asyncio.Semaphore) -> str:
    """How it ended, as a client of SSE sees it: exactly one reason, then the mark."""
    body = CHAT | {"stream": True, "max_tokens": max_tokens}
    async with http.post("/v1/chat/completions", json=body) as response:
        assert response.status == 200
        text = await response.content.readuntil(b"\n\n")
        begun.release()
        text += await response.read()
    events = [line[6:] for line in text.decode().splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    choices = [choice for event in events[:-1] for choice in orjson.loads(event)["choices"]]
    (reason,) = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    return str(reason)


async def whole(http: aiohttp.ClientSession, max_tokens: int, begun: asyncio.Semaphore) -> str:
    """Nothing of it is seen before its end: `stop_when` looks how many run."""
    begun.release()
    async with http.post("/v1/chat/completions", json=CHAT | {"max_tokens": max_tokens}) as answer:
        assert answer.status == 200
        return str((await answer.json())["choices"][0]["finish_reason"])


async def socket(http: aiohttp.ClientSession, max_tokens: int, begun: asyncio.Semaphore) -> str:
    """How it ended over a WebSocket, which is closed after it."""
    ended: list[Any] = []
    async with http.ws_connect("/v1/responses") as ws:
        asked = {"type": "response.create", "input": "hi", "max_output_tokens": max_tokens}
        await ws.send_json(asked)
        async for message in ws:
            event = orjson.loads(message.data)
            if event["type"] == "response.created":
                begun.release()
            elif event["type"] in ("response.completed", "response.incomplete", "error"):
                ended.append(event)
        assert ws.close_code == aiohttp.WSCloseCode.GOING_AWAY
    (event,) = ended
    return str(event["response"]["incomplete_details"]["reason"])


async def health(http: aiohttp.ClientSession) -> Any:
    async with http.get("/health") as response:
        seen = await response.json()
        assert response.status == (200 if seen["state"] == "ready" else 503)
        return seen


async def stop_when(
    served: Serving, http: aiohttp.ClientSession, begun: asyncio.Semaphore, num: int
) -> None:
    for _ in range(num):
        await begun.acquire()
    running = f'vllm:num_requests_running{{model_name="mock"}} {float(num)}'
    while True:
        async with http.get("/metrics") as response:
            if running in await response.text():
                break
    served.process.send_signal(signal.SIGTERM)
    assert (await served.line()).startswith("stopping")


async def test_all_that_was_accepted_finishes_and_others_go_elsewhere() -> None:
    begun = asyncio.Semaphore(0)
    async with serving(30.0, 30.0) as served, aiohttp.ClientSession(served.url) as http:
        kinds = (streamed, whole, socket)
        tasks = [asyncio.create_task(kind(http, 40, begun)) for kind in kinds for _ in range(MANY)]
        last = asyncio.create_task(streamed(http, 8000, begun))  # it drains until this one is gone
        await stop_when(served, http, begun, len(tasks) + 1)
        while (seen := await health(http))["state"] == "ready":
            pass
        assert (seen["state"], seen["status"]) == ("draining", "unhealthy")
        assert 0 < seen["requests_left"] <= len(tasks) + 1
        assert 0 < seen["seconds_left"] <= 30
        assert seen["message"].startswith("draining: ")
        async with http.post("/v1/chat/completions", json=CHAT) as response:
            assert response.status == 503
            assert response.headers["Connection"] == "close"
            assert 1 <= int(response.headers["Retry-After"]) <= 30
        finished = asyncio.gather(*tasks)
        last.cancel()
        assert set(await finished) == {"length", "max_output_tokens"}
        assert await served.process.wait() == 0


async def test_what_does_not_finish_in_time_is_told_once() -> None:
    begun = asyncio.Semaphore(0)
    async with serving(0.3, 20.0) as served, aiohttp.ClientSession(served.url) as http:
        kinds = (streamed, whole, socket)
        tasks = [
            asyncio.create_task(kind(http, 4000, begun)) for kind in kinds for _ in range(MANY)
        ]
        await stop_when(served, http, begun, len(tasks))
        assert set(await asyncio.gather(*tasks)) == {"abort", "server_shutdown"}
        assert await served.process.wait() == 0


async def test_a_second_signal_ends_it_at_once() -> None:
    begun = asyncio.Semaphore(0)
    async with serving(3600.0, 20.0) as served, aiohttp.ClientSession(served.url) as http:
        task = asyncio.create_task(streamed(http, 8000, begun))
        await stop_when(served, http, begun, 1)
        served.process.send_signal(signal.SIGTERM)
        assert await served.process.wait() == 130
        await asyncio.gather(task, return_exceptions=True)
