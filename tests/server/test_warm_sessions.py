"""What the routes tell of turns, seen by an engine with KV."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from lmserve.server.app import build_app
from lmserve.settings import EngineSettings, ServerSettings, SessionSettings, Settings, WarmSettings
from tests.server.talk import Talk, begin
from tests.service.kv_engine import KvEngine


class Served:
    def __init__(self, engine: KvEngine, client: TestClient[Any, Any]):
        self.engine = engine
        self.client = client

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.001)


@asynccontextmanager
async def served(folder: Path, **warm: Any) -> AsyncIterator[Served]:
    settings = Settings(
        server=ServerSettings(model_name="mock", drain_timeout_s=0.2),
        engine=EngineSettings(engine="mock"),
        sessions=SessionSettings(data_dir=str(folder)),
        warm=WarmSettings(**warm),
    )
    engine = KvEngine()
    async with TestClient(TestServer(build_app(settings, engine))) as client:
        yield Served(engine, client)


def files(folder: Path) -> list[Path]:
    return list((folder / "kv").glob("*.kv"))


async def interactive(client: TestClient[Any, Any]) -> None:
    body = {"session_id": 7, "interactive_mode": True, "prompt": "hi", "request_output_len": 3}
    async with client.post("/v1/chat/interactive", json=body) as response:
        assert response.status == 200


async def a_turn(client: TestClient[Any, Any]) -> None:
    async with client.get("/v1/sessions/9") as response:
        talk = Talk(client, "9") if response.status == 200 else await begin(client, id="9")
    await talk.turn(input="hi", max_completion_tokens=3)


@pytest.mark.parametrize("say", [interactive, a_turn])
async def test_a_conversation_is_read_again_after_a_restart(tmp_path: Path, say: Any) -> None:
    async with served(tmp_path) as first:
        await say(first.client)
        await first.until(lambda: bool(first.engine.pins))
    assert len(files(tmp_path)) == 1
    async with served(tmp_path) as second:
        await say(second.client)
        assert second.engine.calls[0] == "restore"
        async with second.client.get("/metrics") as response:
            told = await response.text()
        assert 'lmserve:session_kv_restores_total{model_name="mock",result="hit"} 1.0' in told


async def test_a_conversation_survives_the_sleep_of_the_engine(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        await a_turn(server.client)
        await server.until(lambda: bool(server.engine.pins))
        for path in ("/sleep", "/wakeup"):
            async with server.client.post(path) as response:
                assert response.status == 200
        await a_turn(server.client)
        assert "restore" in server.engine.calls


async def test_a_deleted_conversation_leaves_no_file(tmp_path: Path) -> None:
    async with served(tmp_path, spill_after_s=0.0) as server:
        await a_turn(server.client)
        await server.until(lambda: len(files(tmp_path)) == 1)
        await Talk(server.client, "9").delete()
        await server.until(lambda: not files(tmp_path))
        assert not server.engine.pins


async def test_a_fork_has_its_own_file(tmp_path: Path) -> None:
    async with served(tmp_path, spill_after_s=0.0) as server:
        await a_turn(server.client)
        await server.until(lambda: len(files(tmp_path)) == 1)
        await Talk(server.client, "9").post("/fork", {"id": "fork"})
        await server.until(lambda: len(files(tmp_path)) == 2)


async def test_what_is_not_stored_is_not_written(tmp_path: Path) -> None:
    async with served(tmp_path, spill_after_s=0.0) as server:
        body = {"input": "hi", "store": False, "max_output_tokens": 3}
        async with server.client.post("/v1/responses", json=body) as response:
            assert response.status == 200, await response.text()
        await server.until(lambda: bool(server.engine.pins))
    assert "save" not in server.engine.calls
    assert not files(tmp_path)


async def test_spilling_can_be_turned_off(tmp_path: Path) -> None:
    async with served(tmp_path, spill_after_s=0.0, spill=False) as server:
        await interactive(server.client)
        await server.until(lambda: bool(server.engine.pins))
    assert "save" not in server.engine.calls
