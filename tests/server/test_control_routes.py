"""/sleep, /wakeup, /is_sleeping, /abort_request and /terminate."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import ClientSession
from aiohttp.test_utils import TestClient
from pytest_aiohttp import AiohttpClient

from lmserve.bridge import assets
from lmserve.bridge.child import ChildEngine
from lmserve.server.app import build_app
from lmserve.server.lifecycle import running_server
from lmserve.settings import EngineSettings, Settings

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}


async def is_sleeping(client: TestClient) -> bool:
    response = await client.get("/is_sleeping")
    assert response.status == 200
    (answer,) = (await response.json()).items()
    assert answer[0] == "is_sleeping"
    return bool(answer[1])


async def test_sleep_and_wakeup(client: TestClient, fake: Any) -> None:
    assert not await is_sleeping(client)
    fake.will_hang("Hel")
    answer = await client.post("/v1/chat/completions", json=CHAT | {"stream": True})
    await answer.content.readuntil(b"Hel")
    slept = await client.post("/sleep")
    assert (slept.status, await slept.read()) == (200, b"")
    assert b'"finish_reason":"abort"' in await answer.read()
    assert await is_sleeping(client)
    refused = await client.post("/v1/chat/completions", json=CHAT)
    error = await refused.json()
    assert (refused.status, error["code"]) == (503, 503)
    assert "asleep: POST /wakeup" in error["message"]
    woken = await client.post("/wakeup")
    assert (woken.status, await woken.read()) == (200, b"")
    assert not await is_sleeping(client)
    fake.will_say("Hello")
    answered = await client.post("/v1/chat/completions", json=CHAT)
    assert (await answered.json())["choices"][0]["message"]["content"] == "Hello"


@pytest.mark.parametrize("query", ["level=1", "level=2"])
async def test_levels_and_tags(client: TestClient, query: str) -> None:
    for tags in ("", "?tags=weights", "?tags=kv_cache", "?tags=weights&tags=kv_cache"):
        assert (await client.post(f"/sleep?{query}")).status == 200
        assert await is_sleeping(client)
        assert (await client.post(f"/wakeup{tags}")).status == 200
        assert not await is_sleeping(client)
    assert (await client.post("/wakeup")).status == 200  # it is awake


@pytest.mark.parametrize(
    ("path", "param", "says"),
    [
        ("/sleep?level=0", "level", "1 or 2"),
        ("/sleep?level=", "level", "1 or 2"),
        ("/wakeup?tags=weights&tags=kv", "tags", "'kv'"),
    ],
)
async def test_other_levels_and_tags(client: TestClient, path: str, param: str, says: str) -> None:
    response = await client.post(path)
    error = (await response.json())["error"]
    assert (response.status, error["param"]) == (400, param)
    assert says in error["message"]
    assert not await is_sleeping(client)


async def test_what_is_not_enabled(client: TestClient) -> None:
    aborted = await client.post("/abort_request", json={"abort_all": True})
    assert aborted.status == 501
    assert "--enable-abort-handling" in (await aborted.json())["error"]["message"]
    terminated = await client.get("/terminate")
    error = (await terminated.json())["error"]
    assert (terminated.status, error["code"]) == (400, "not_enabled")
    assert "--allow-terminate-by-client" in error["message"]


async def test_to_look_ends_nothing(client: TestClient) -> None:
    looked = await client.head("/terminate")
    assert (looked.status, looked.headers["Allow"]) == (405, "GET, OPTIONS")


@pytest.fixture
async def aborting(aiohttp_client: AiohttpClient, settings: Settings, fake: Any) -> TestClient:
    server = replace(settings.server, enable_abort_handling=True)
    return await aiohttp_client(build_app(replace(settings, server=server), fake))


@pytest.mark.parametrize(
    ("path", "prompt"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", {"prompt": "a"}),
        ("/generate", {"prompt": "a"}),
    ],
)
async def test_abort_by_session(
    aborting: TestClient, fake: Any, path: str, prompt: dict[str, Any]
) -> None:
    fake.will_hang("Hel").will_hang("Hel")
    asked = [
        await aborting.post(path, json=prompt | {"stream": True, "session_id": id}) for id in (1, 2)
    ]
    for answer in asked:
        await answer.content.readuntil(b"Hel")
    assert (await aborting.post("/abort_request", json={"session_id": 1})).status == 200
    assert b'"abort"' in await asked[0].read()
    assert len(fake.aborts) == 1
    unknown = await aborting.post("/abort_request", json={"session_id": 1})
    assert (unknown.status, (await unknown.json())["param"]) == (400, "session_id")
    done = await aborting.post("/abort_request", json={"abort_all": True})
    assert (done.status, await done.read()) == (200, b"")
    assert b'"abort"' in await asked[1].read()
    assert (await aborting.post("/abort_request", json={"abort_all": True})).status == 200


async def test_each_key_aborts_its_own(
    aiohttp_client: AiohttpClient, settings: Settings, fake: Any
) -> None:
    server = replace(settings.server, enable_abort_handling=True, api_keys=("ann", "bob"))
    client = await aiohttp_client(build_app(replace(settings, server=server), fake))
    ann, bob = ({"Authorization": f"Bearer {key}"} for key in ("ann", "bob"))
    fake.will_hang("Hel")
    body = CHAT | {"stream": True, "session_id": 1}
    answer = await client.post("/v1/chat/completions", json=body, headers=ann)
    await answer.content.readuntil(b"Hel")
    for body, status in (({"session_id": 1}, 400), ({"abort_all": True}, 200)):
        response = await client.post("/abort_request", json=body, headers=bob)
        assert response.status == status
    assert not fake.aborts
    response = await client.post("/abort_request", json={"session_id": 1}, headers=ann)
    assert response.status == 200
    assert b'"abort"' in await answer.read()


async def test_abort_needs_to_know_whom(aborting: TestClient) -> None:
    for body in ({}, {"session_id": -1}, {"session_id": "1"}):
        response = await aborting.post("/abort_request", json=body)
        assert (response.status, (await response.json())["param"]) == (400, "session_id")


@pytest.fixture
async def child(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ChildEngine:
    """An engine process that says what it is scripted to."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "bridge"))
    tokenizer = await asyncio.to_thread(assets.write_assets, tmp_path)
    monkeypatch.setenv("SCRIPTED_TOKENIZER", str(tokenizer))
    return ChildEngine(EngineSettings(), "scripted_core:ScriptedCore")


async def test_a_sleeping_servers_engine_process_is_gone(
    settings: Settings, child: ChildEngine
) -> None:
    async with running_server(settings, child) as server, ClientSession(server.url) as session:

        async def answer() -> str:
            body = {"prompt": "a", "max_tokens": 3, "ignore_eos": True}
            async with session.post("/v1/completions", json=body) as response:
                return str((await response.json())["choices"][0]["text"])

        pid = (await child.wait_ready()).pid
        before = await answer()
        async with session.post("/sleep?level=2") as response:
            assert response.status == 200
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        async with session.get("/health") as response:
            assert (response.status, (await response.json())["status"]) == (200, "sleeping")
        async with session.post("/wakeup") as response:
            assert response.status == 200
        assert child.info is not None
        assert child.info.pid != pid
        assert await answer() == before == "abc"


async def test_an_engine_that_cannot_wake_is_told(
    settings: Settings, child: ChildEngine, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    await asyncio.to_thread(model.touch)  # the core removes it when it loads
    child._settings = EngineSettings(model=str(model))
    async with running_server(settings, child) as server, ClientSession(server.url) as session:
        await child.wait_ready()
        async with session.post("/sleep") as response:
            assert response.status == 200
        async with session.post("/wakeup") as response:
            assert response.status == 503
            assert "the model was there only once" in (await response.json())["message"]
        async with session.get("/health") as response:
            body = await response.json()
            assert (response.status, body["status"], body["state"]) == (503, "unhealthy", "failed")


async def test_terminate_answers_then_ends_the_server() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "lmserve", "serve", "api_server", "--engine", "mock"),
        *("--server-port", "0", "--mock-tokens-s", "40", "--allow-terminate-by-client"),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        url = (await process.stdout.readline()).split()[1].decode()
        while not (await process.stdout.readline()).startswith(b"ready"):
            pass
        async with ClientSession(url) as session:
            body = CHAT | {"stream": True, "max_tokens": 20}
            async with session.post("/v1/chat/completions", json=body) as running:
                await running.content.readuntil(b"\n\n")
                async with session.get("/terminate") as response:
                    assert (response.status, await response.read()) == (200, b"")
                *_, last, done, _ = (await running.read()).split(b"\n\n")
            finish = orjson.loads(last.removeprefix(b"data: "))["choices"][0]["finish_reason"]
            assert (finish, done) == ("length", b"data: [DONE]")  # it may finish
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
