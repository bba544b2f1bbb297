"""A small OpenAI-style server for the commands that talk to one, on a port of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer


class OpenAIServer:
    """Answers with the words it was told; remembers what it was asked."""

    def __init__(self) -> None:
        self.url = ""
        self.words = ["Hel", "lo", "."]
        self.asked: list[dict[str, Any]] = []
        self.failure: web.Response | None = None
        self.error_event: bytes | None = None  # sent after the words
        self.hangs = False  # after the words
        self.breaks_off = False  # after the words
        self.left = asyncio.Event()  # a client left while it hung

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "tiny", "object": "model"}]})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(await request.json())
        if self.failure is not None:
            return self.failure
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for word in self.words:
            chunk = {"choices": [{"index": 0, "delta": {"content": word}}]}
            await response.write(b"data: " + orjson.dumps(chunk) + b"\n\n")
        if self.hangs:
            try:  # the test server cancels a handler whose client leaves
                await asyncio.Event().wait()
            finally:
                self.left.set()
        if self.breaks_off:
            return response
        if self.error_event is not None:
            await response.write(b"data: " + self.error_event + b"\n\n")
        await response.write(b": a comment\n\ndata: [DONE]\n\n")
        return response


@pytest.fixture
async def openai_server() -> AsyncIterator[OpenAIServer]:
    stub = OpenAIServer()
    app = web.Application()
    app.router.add_get("/v1/models", stub.models)
    app.router.add_post("/v1/chat/completions", stub.chat)
    async with TestServer(app) as server:
        stub.url = str(server.make_url("/")).rstrip("/")
        yield stub
