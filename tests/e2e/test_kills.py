"""kill -9 at any moment, of the server and of the engine: nothing that was acknowledged is lost."""

from __future__ import annotations

import asyncio
import os
import select
import shutil
import signal
import sqlite3
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import orjson
import pytest

from lmserve.bench.processes import tree
from lmserve.bridge.child import NAME, STANDBY_NAME
from tests.e2e.conftest import TinyModel, serving
from tests.e2e.house import House, clients, cut_at_most, get, output_text
from tests.e2e.writers import data_lines


def name_of(pid: int) -> str:
    """As `ps` shows it; "" where there is none."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


async def engines_of(server: int) -> list[int]:
    """All processes of that server but itself, once one of them stands by."""
    async with asyncio.timeout(60):
        while True:
            names = {pid: name_of(pid) for pid in tree(server) if pid != server}
            if {NAME, STANDBY_NAME} <= set(names.values()):
                return list(names)
            await asyncio.sleep(0.05)


async def kept_some(data: Path, id: str) -> None:
    """Until some of its text is on disk."""
    async with asyncio.timeout(20):
        with closing(sqlite3.connect(f"file:{data / 'sessions.sqlite3'}?mode=ro", uri=True)) as db:
            kept = "SELECT 1 FROM chunks WHERE response = ? AND text != ''"
            while db.execute(kept, (id,)).fetchone() is None:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


@pytest.fixture(scope="session")
def tiny(tiny_llama: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The flags of a server with that model, and room for long conversations."""
    path = tmp_path_factory.mktemp("roomy") / "model"
    shutil.copytree(tiny_llama.path, path)
    config = orjson.loads((path / "config.json").read_bytes())
    (path / "config.json").write_bytes(orjson.dumps(config | {"max_position_embeddings": 32768}))
    return str(path), "--dtype", "float32", "--threads", "1"


# --- the loops ----------------------------------------------------------------------------

MOCK = ("--engine", "mock", "--mock-tokens-s", "60", "--session-len", "32768")


async def test_a_server_killed_at_any_moment_loses_nothing_acknowledged(tmp_path):
    house = House(tmp_path, 1, *MOCK)
    for seconds in (1.2, 3.1):
        await house.round(seconds * house.source.uniform(0.8, 1.2))
    await house.last_round()
    assert len(house.notes.responses) > 20


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(2, 5))
async def test_many_kills_of_a_server(tmp_path, seed):
    house = House(tmp_path, seed, *MOCK)
    for _ in range(10):
        await house.round(house.source.uniform(0.0, 5.0))
    await house.last_round()


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_kills_of_a_server_with_a_model(tmp_path, tiny):
    """And of its engine, alone, while all go on."""
    house = House(tmp_path / "data", 7, *tiny, "--spill-after-s", "0.3")
    for num in range(6):
        await house.round(house.source.uniform(1.0, 8.0), kills_engine=num % 2 == 1)
    await house.last_round()


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_killed_server_takes_its_engines_with_it(tmp_path, tiny):
    """The one that answers, in the middle of it, and the one that stands by."""
    args = (*tiny, "--data-dir", str(tmp_path))
    body = {"input": "Count.", "max_output_tokens": 8, "ignore_eos": True}
    with serving(*args, env={"LMSERVE_STANDBY": "true"}) as server, ExitStack() as stack:
        async with clients(server) as http:
            async with http.post("/v1/responses", json=body) as response:
                first = await response.json()
            engines = await engines_of(server.pid)
            ends = [os.pidfd_open(each) for each in engines]
            for end in ends:
                stack.callback(os.close, end)
            endless = body | {"max_output_tokens": 30000, "stream": True}
            async with http.post("/v1/responses", json=endless) as response:
                await anext(data_lines(response))
                os.kill(server.pid, signal.SIGKILL)
            for end in ends:
                assert (await asyncio.to_thread(select.select, [end], [], [], 30.0))[0] == [end]
        args += ("--server-port", server.url.rsplit(":", 1)[1])
    with serving(*args) as server:
        async with clients(server) as http:
            assert await get(http, f"/v1/responses/{first['id']}") == first
            further = body | {"previous_response_id": first["id"]}
            async with http.post("/v1/responses", json=further) as response:
                assert (await response.json())["status"] == "incomplete"


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_what_goes_on_after_a_kill_is_what_would_have_come(tmp_path, tiny):
    body = {"input": "Count.", "temperature": 0, "max_output_tokens": 5000, "ignore_eos": True}
    args = (*tiny, "--data-dir", str(tmp_path))
    with serving(*args) as server:
        async with clients(server) as http:
            async with http.post("/v1/responses", json=body) as response:
                twin = output_text(await response.json())
            async with http.post("/v1/responses", json=body | {"stream": True}) as response:
                lines = data_lines(response)
                id = orjson.loads(await anext(lines))["response"]["id"]
                async for data in lines:
                    if b"delta" in data:
                        break
                await kept_some(tmp_path, id)
                os.kill(server.pid, signal.SIGKILL)
    with serving(*args) as server:
        async with clients(server) as http:
            cut = await get(http, f"/v1/responses/{id}")
            assert cut["incomplete_details"] == {"reason": "server_restart"}
            said = output_text(cut)
            assert 0 < len(said) < len(twin)
            further = body | {"input": None, "continue": id, "max_output_tokens": 2000}
            async with http.post("/v1/responses", json=further) as response:
                longer = output_text(await response.json())
            assert longer.startswith(said) and len(longer) > len(said)
            assert cut_at_most(longer, twin)
