"""Two servers with real engines behind a distributor: what they keep is made use of."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from contextlib import AsyncExitStack

import pytest
from aiohttp import ClientSession

from lmserve.distributor.app import running_proxy
from lmserve.distributor.settings import ProxySettings
from lmserve.server.lifecycle import running_server
from lmserve.settings import EngineSettings, ServerSettings, SessionSettings, Settings

HEADER = "X-Cached-Tokens"


@pytest.fixture
async def proxy(tiny_llama, tmp_path):
    async with AsyncExitStack() as stack:
        urls = []
        for number in range(2):
            settings = Settings(
                server=ServerSettings(server_port=0, model_name="tiny"),
                engine=EngineSettings(
                    model=str(tiny_llama.path), engine="thread", dtype="float32", threads=1,
                    device="cpu", stuck_after_s=30.0,
                ),
                sessions=SessionSettings(data_dir=str(tmp_path / str(number))),
            )  # fmt: skip
            server = await stack.enter_async_context(running_server(settings))
            await asyncio.wait_for(server.handle.wait_ready(), 50)
            urls.append(server.url)
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        proxied = ProxySettings(nodes=tuple(urls), health_timeout_s=30.0)
        await stack.enter_async_context(running_proxy(proxied, listener))
        port = listener.getsockname()[1]
        yield await stack.enter_async_context(ClientSession(f"http://127.0.0.1:{port}"))


async def test_two_turns_keep_their_history_and_their_cached_tokens(proxy):
    async def turn(session_id, prompt):
        body = {
            "prompt": prompt,
            "session_id": session_id,
            "interactive_mode": True,
            "request_output_len": 8,
            "temperature": 0,
        }
        async with proxy.post("/v1/chat/interactive", json=body) as response:
            assert response.status == 200
            return await response.json(), int(response.headers[HEADER])

    for session_id in range(1, 5):
        first, cached = await turn(session_id, f"I am number {session_id}.")
        assert first["history_tokens"] == 0
        held = first["input_tokens"] + first["tokens"]
        second, cached = await turn(session_id, "Who am I?")
        assert second["history_tokens"] >= held
        assert cached >= held - 1  # the last token said was never run


async def test_the_same_beginning_finds_the_node_that_saw_it(proxy):
    texts = [letter * 280 for letter in "abcd"]
    cached = Counter()
    for round_ in range(3):
        for text in texts:
            body = {"prompt": f"{text} {round_}", "max_tokens": 1, "temperature": 0}
            async with proxy.post("/v1/completions", json=body) as response:
                usage = (await response.json())["usage"]
            cached[text, round_] = usage["prompt_tokens_details"]["cached_tokens"]
    for text in texts:
        assert cached[text, 1] >= 280
        assert cached[text, 2] >= 280
