"""A real server with a real engine process and a tiny model: clients, faults, clean-up."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys

import aiohttp
import openai
import pytest
from tokenizers import Tokenizer

from lmserve.server.lifecycle import running_server
from lmserve.settings import EngineSettings, ServerSettings, Settings

LONG = 400  # tokens: such an answer is still running when the test acts


def settings_for(model, **engine) -> Settings:
    chosen = {"dtype": "float32", "threads": 1, "device": "cpu", "stuck_after_s": 30.0, **engine}
    return Settings(
        server=ServerSettings(server_port=0, model_name="tiny"),
        engine=EngineSettings(model=str(model.path), **chosen),
    )


@pytest.fixture(params=["child", "thread"])
async def server(request, tiny_llama):
    async with running_server(settings_for(tiny_llama, engine=request.param)) as server:
        await asyncio.wait_for(server.handle.wait_ready(), 50)
        await server.service.prepare()
        yield server


@pytest.fixture
async def child(tiny_llama):
    async with running_server(settings_for(tiny_llama)) as server:
        await asyncio.wait_for(server.handle.wait_ready(), 50)
        await server.service.prepare()
        yield server


def client_of(server) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def body(text: str, **fields) -> dict:
    return {"prompt": text, "max_tokens": LONG, "ignore_eos": True, "stream": True, **fields}


async def all_blocks_are_back(server) -> None:
    """Waits until the engine holds nothing; `check` also proves the pool's integrity."""
    async with asyncio.timeout(20):
        while (await server.handle.control("check", timeout_s=20))["held"]:
            pass  # each asks the engine's loop, between two steps


async def test_the_openai_client_chats_and_streams(server, tiny_llama):
    async with client_of(server) as client:
        messages = [{"role": "user", "content": "Hi there"}]
        options = {"model": "tiny", "temperature": 0, "max_tokens": 20, "messages": messages}
        answer = await client.chat.completions.create(**options)
        text = ""
        stream = await client.chat.completions.create(
            **options, stream=True, stream_options={"include_usage": True}
        )
        async for chunk in stream:
            if chunk.choices:
                text += chunk.choices[0].delta.content or ""
            else:
                usage = chunk.usage
        assert text == answer.choices[0].message.content
        assert usage.prompt_tokens == answer.usage.prompt_tokens
        assert usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 1


async def test_tokens_over_http_are_the_golden_ones(server, tiny_llama):
    prompt = list(b"Once upon a time")
    async with aiohttp.ClientSession() as session:
        many = [
            session.post(
                f"{server.url}/v1/completions",
                json={"prompt": prompt[: 4 + n], "max_tokens": 9, "temperature": 0,
                      "ignore_eos": True, "skip_special_tokens": False},
            )
            for n in range(12)
        ]  # fmt: skip
        tokenizer = Tokenizer.from_file(server.handle.info.tokenizer_file)
        for n, response in enumerate(await asyncio.gather(*many)):
            text = (await response.json())["choices"][0]["text"]
            golden = tiny_llama.golden(prompt[: 4 + n], 9)
            assert text == tokenizer.decode(golden, skip_special_tokens=False)


async def test_a_client_that_leaves_frees_its_blocks(server):
    async with aiohttp.ClientSession() as session:
        async with session.post(f"{server.url}/v1/completions", json=body("stay")) as response:
            await response.content.readline()
        with pytest.raises(TimeoutError):  # not streamed: it leaves while nothing is written
            async with asyncio.timeout(0.05):
                await session.post(f"{server.url}/v1/completions", json=body("go", stream=False))
    await all_blocks_are_back(server)
    assert server.service.inflight == 0


async def test_killing_the_engine_tells_each_client_and_the_server_recovers(child):
    async with aiohttp.ClientSession() as session:

        async def read(n: int) -> list[str]:
            async with session.post(
                f"{child.url}/v1/completions", json=body(f"story {n}")
            ) as response:
                assert response.status == 200
                first = await response.content.readline()
                begun.release()
                rest = await response.content.read()
            lines = (first + rest).decode().split("\n\n")
            return [line.removeprefix("data: ").strip() for line in lines if line.strip()]

        begun = asyncio.Semaphore(0)
        readers = [asyncio.create_task(read(n)) for n in range(4)]
        for _ in readers:
            await begun.acquire()
        pid = child.handle.info.pid
        os.kill(pid, signal.SIGKILL)
        for events in await asyncio.gather(*readers):
            errors = [event for event in map(parsed, events) if event and "error" in event]
            assert len(errors) == 1 and errors[0]["error"]["code"] == "engine_died"
            assert events[-1] == "[DONE]"
        info = await asyncio.wait_for(child.handle.wait_ready(), 50)
        assert info.pid != pid
        answer = await session.post(
            f"{child.url}/v1/completions", json=body("again", max_tokens=3, stream=False)
        )
        assert answer.status == 200
        assert (await answer.json())["usage"]["completion_tokens"] == 3
    await all_blocks_are_back(child)


def parsed(event: str) -> dict | None:
    return None if event == "[DONE]" else json.loads(event)


LOOK = """
import asyncio, sys
from lmserve.server.lifecycle import running_server
from lmserve.settings import EngineSettings, ServerSettings, Settings
import aiohttp

async def main(path):
    settings = Settings(
        server=ServerSettings(server_port=0),
        engine=EngineSettings(model=path, dtype="float32", threads=1, stuck_after_s=30.0),
    )
    async with running_server(settings) as server, aiohttp.ClientSession() as session:
        await server.handle.wait_ready()
        await server.service.prepare()
        messages = [{"role": "user", "content": "hello"}]
        async with session.post(
            f"{server.url}/v1/chat/completions", json={"messages": messages, "max_tokens": 4}
        ) as response:
            assert response.status == 200, await response.text()
    print(*sorted({"torch", "transformers", "numpy"} & set(sys.modules)))

asyncio.run(main(sys.argv[1]))
"""


def test_the_server_process_holds_no_torch_after_a_chat(tiny_llama):
    done = subprocess.run(
        [sys.executable, "-c", LOOK, str(tiny_llama.path)],
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
