"""A server in this process that answers as it is told to, badly too."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

ADDED_TOKENS = 10  # by a template


@dataclass
class FakeServer:
    """A word is two tokens; an answer is `max_tokens` pieces `x`."""

    url: str = ""
    misdeeds: list[str] = field(default_factory=list)  # of the requests after the first `good`
    good: int = 0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    usage: bool = True
    most_at_once: int = 0
    _at_once: int = 0

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            late = len(self.bodies) > self.good and self.misdeeds
            return await self._answer(request, body, self.misdeeds.pop(0) if late else "")
        finally:
            self._at_once -= 1

    async def _answer(
        self, request: web.Request, body: dict[str, Any], misdeed: str
    ) -> web.StreamResponse:
        if misdeed == "500":
            return web.Response(status=500, text="out of\nmemory")
        if misdeed == "silence":
            await asyncio.Event().wait()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for _ in range(body["max_tokens"]):
            await _say(response, {"choices": [{"delta": {"content": "x"}, "finish_reason": None}]})
            await asyncio.sleep(0)
            if misdeed == "drop":
                assert request.transport is not None
                request.transport.abort()
                return response
            if misdeed == "break off":
                return response
            if misdeed == "nonsense":
                await response.write(b"data: {no JSON\n\n")
            if misdeed == "error":
                await _say(response, {"error": {"message": "it is over"}})
        await _say(response, {"choices": [{"delta": {}, "finish_reason": "length"}]})
        if self.usage:
            await _say(response, {"choices": [], "usage": self._usage(body)})
        await response.write(b"data: [DONE]\n\n")
        return response

    def _usage(self, body: dict[str, Any]) -> dict[str, Any]:
        text = " ".join(message["content"] for message in body["messages"])
        return {
            "prompt_tokens": ADDED_TOKENS + 2 * len(text.split()),
            "completion_tokens": body["max_tokens"],
            "prompt_tokens_details": {"cached_tokens": 3},
        }


async def _say(response: web.StreamResponse, event: dict[str, Any]) -> None:
    await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")


@asynccontextmanager
async def faking(**how: Any) -> AsyncIterator[FakeServer]:
    fake = FakeServer(**how)
    app = web.Application()
    app.router.add_post("/v1/chat/completions", fake.chat)
    app.router.add_get("/v1/models", _models)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield fake
    finally:
        await runner.cleanup()


async def _models(_: web.Request) -> web.Response:
    return web.json_response({"data": [{"id": "fake"}]})
