"""A server whose log nobody reads, as one whose terminal was stopped, or that nobody can read."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import aiohttp
import pytest

ROOT = Path(__file__).resolve().parents[2]
NUM_LINES = 800  # of over 200 characters: a pipe holds 64 KiB


@contextmanager
def stuck() -> Iterator[int]:
    reader, writer = os.pipe()
    try:
        yield writer
    finally:
        os.close(reader)
        os.close(writer)


@contextmanager
def closed() -> Iterator[int]:
    """Its reader is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        yield writer
    finally:
        os.close(writer)


@contextmanager
def full() -> Iterator[int]:
    """As a disk without room."""
    with open("/dev/full", "wb") as file:
        yield file.fileno()


@pytest.mark.slow
@pytest.mark.parametrize("stderr", [stuck, closed, full])
async def test_nobody_reads_the_log(
    tmp_path: Path, stderr: Callable[[], AbstractContextManager[int]]
) -> None:
    with stderr() as writer:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "lmserve", "serve", "api_server", "--engine", "mock"),
            *("--server-port", "0", "--data-dir", str(tmp_path), "--log-format", "json"),
            *("--log-level", "debug"),
            cwd=ROOT,
            stdout=PIPE,
            stderr=writer,
        )
        try:
            assert process.stdout is not None
            line = await process.stdout.readline()
            url = json.loads(line)["message"].split()[1]
            long = f"/{'x' * 190}"
            async with aiohttp.ClientSession(url) as web:
                for _ in range(NUM_LINES):
                    async with web.get(long) as response:
                        assert response.status == 404
            process.terminate()
            assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
