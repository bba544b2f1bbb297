"""What a server says where its lines are read by a machine: a container's, or a journal's."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@asynccontextmanager
async def said(*command: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, Any]]:
    """All that is told, on stdout or stderr."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "lmserve", "serve", *command, "--server-port", "0"),
        *("--log-format", "json"),
        cwd=ROOT,
        stdout=PIPE,
        stderr=STDOUT,
    )
    assert process.stdout is not None
    out = process.stdout

    async def line() -> str:
        told = json.loads(await out.readline())
        assert {"time", "level", "logger"} <= set(told)
        return str(told["message"])

    try:
        async with asyncio.timeout(50):
            yield process, line
            while rest := await out.readline():
                assert json.loads(rest)
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_every_line_of_a_server_is_json(tmp_path: Path) -> None:
    mock = ("--engine", "mock", "--data-dir", str(tmp_path), "--log-level", "warning")
    async with said("api_server", *mock) as (process, line):
        assert (await line()).startswith("open http://127.0.0.1:")
        assert (await line()).startswith("ready after ")
        process.terminate()
        assert (await line()).startswith("stopping")


async def test_every_line_of_a_distributor_is_json() -> None:
    async with said("proxy") as (process, line):
        while not (await line()).startswith("distributing at http"):
            pass
        process.terminate()
