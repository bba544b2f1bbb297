"""The Python client over a server that is killed: what was acknowledged is there, and goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from lmserve_client import AnswerInterrupted, Lmserve

from tests.clients.faults import proxying

WORDS = 40


@asynccontextmanager
async def serving(data_dir: Path) -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    """The mock engine's words, some a second."""
    command = "-m lmserve serve api_server --engine mock --mock-tokens-s 100 --server-port 0"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command.split(),
        "--data-dir",
        str(data_dir),
        stdout=asyncio.subprocess.PIPE,
        env=dict(os.environ),
    )
    try:
        assert process.stdout is not None
        async for line in process.stdout:
            if b"http://" in line:
                yield line.decode().split("open ")[1].split()[0], process
                break
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        await process.communicate()


@pytest.mark.slow
async def test_an_answer_outlives_kills(tmp_path: Path) -> None:
    async with (
        serving(tmp_path) as (url, server),
        proxying(url) as proxy,
        Lmserve(proxy.url) as client,
    ):
        session = await client.sessions.create(id="talk")
        twin = await (await client.respond("hi", max_output_tokens=WORDS)).text()
        answer = await client.respond("hi", session=session, max_output_tokens=WORDS)
        said = ""
        async for piece in answer:
            said += piece
            if len(said) > len(twin) // 3:
                break
        server.kill()
        await server.wait()
        async with serving(tmp_path) as (again, _):
            proxy.upstream = again
            with pytest.raises(AnswerInterrupted) as caught:
                await answer.text()
            assert caught.value.reason == "server_restart"
            kept = caught.value.response.text
            assert twin.startswith(kept)
            rest = await client.respond(continue_=caught.value.response, max_output_tokens=WORDS)
            assert (await rest.text()).startswith(kept)
            line = await client.sessions.messages(session)
            assert [message.role for message in line] == ["user", "assistant"]
            assert line[-1].text == await rest.text()
