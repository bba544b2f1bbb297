"""The blocking entry: what it says, how it stops, what it refuses, what it never imports."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import ClientSession

from lmserve.bridge.fake import FakeEngine
from lmserve.edge.listen import bind, url_of
from lmserve.errors import ModelError, SetupError
from lmserve.messages import EngineInfo
from lmserve.server import lifecycle
from lmserve.server.lifecycle import serve
from lmserve.settings import EngineSettings, ServerSettings, Settings

PROGRAM = """
import json, sys
from lmserve.server.lifecycle import serve
from lmserve.settings import EngineSettings, ServerSettings, Settings
server = ServerSettings(server_port=0, model_name="mock", drain_timeout_s=float(sys.argv[1]))
engine = EngineSettings(engine="mock", mock_tokens_s=float(sys.argv[2]))
serve(Settings(server=server, engine=engine), lambda line: print(line, flush=True))
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}


class Serving:
    """A server in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process, url: str):
        self.process = process
        self.url = url

    async def line(self) -> str:
        assert self.process.stdout is not None
        return (await self.process.stdout.readline()).decode().strip()


@asynccontextmanager
async def serving(drain_timeout_s: float, tokens_s: float) -> AsyncIterator[Serving]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        PROGRAM,
        str(drain_timeout_s),
        str(tokens_s),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        served = Serving(process, "")
        first = await served.line()
        assert first.startswith("open http://127.0.0.1:")
        served.url = first.split()[1]
        assert (await served.line()).startswith("ready after ")
        while not (await served.line()).startswith("Ctrl-C stops"):
            pass  # the block that says where to go
        yield served
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_an_answer_in_flight_may_finish(number: signal.Signals) -> None:
    async with serving(30.0, 40.0) as served, ClientSession(served.url) as session:
        body = CHAT | {"stream": True, "max_tokens": 20}
        async with session.post("/v1/chat/completions", json=body) as response:
            await response.content.readuntil(b"\n\n")
            served.process.send_signal(number)
            assert (await served.line()).startswith("stopping")
            rest = await response.read()
        assert b'"finish_reason":"length"' in rest
        assert rest.endswith(b"data: [DONE]\n\n")
        modules = set(json.loads(await served.line()))
        assert await served.process.wait() == 0
    assert modules & {"torch", "transformers", "numpy"} == set()
    assert {"uvloop", "aiohttp", "tokenizers"} <= modules


async def test_the_drain_has_a_deadline() -> None:
    async with serving(0.1, 20.0) as served, ClientSession(served.url) as session:
        body = CHAT | {"stream": True, "max_tokens": 8000}
        async with session.post("/v1/chat/completions", json=body) as response:
            await response.content.readuntil(b"\n\n")
            served.process.send_signal(signal.SIGTERM)
            rest = await response.read()
        assert b'"finish_reason":"abort"' in rest
        assert rest.endswith(b"data: [DONE]\n\n")
        assert await served.process.wait() == 0


def test_a_port_in_use_is_told_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(settings: EngineSettings) -> None:
        raise AssertionError("an engine was made")

    monkeypatch.setattr(lifecycle, "make_handle", never)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = Settings(server=ServerSettings(server_port=port))
        with pytest.raises(SetupError, match=f"port {port} of 127.0.0.1 is in use.*--server-port"):
            serve(settings, lambda line: None)


@pytest.mark.parametrize(
    ("name", "port"),
    [("no.such.host.invalid", 0), ("192.0.2.1", 0), ("127.0.0.1", 70_000), ("a" * 300, 0)],
)
def test_addresses_that_cannot_be_had(name: str, port: int) -> None:
    with pytest.raises(SetupError) as caught:
        bind(name, port)
    assert "\n" not in caught.value.message
    assert "--server-" in caught.value.message


@pytest.mark.parametrize(
    ("name", "shown"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::1", "[::1]")]
)
def test_the_url_to_open(name: str, shown: str) -> None:
    try:
        listener = bind(name, 0)
    except SetupError:
        if ":" not in name:
            raise
        pytest.skip("no IPv6 here")
    with listener:
        port = listener.getsockname()[1]
        assert url_of(listener) == f"http://{shown}:{port}"


def test_a_model_that_cannot_load_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(FakeEngine):
        closed = False

        async def wait_ready(self) -> EngineInfo:
            raise ModelError("the file is damaged: fetch it again")

        async def close(self) -> None:
            Broken.closed = True
            await super().close()

    monkeypatch.setattr(lifecycle, "make_handle", Broken)
    lines: list[str] = []
    threads = threading.active_count()
    with pytest.raises(ModelError, match="damaged"):
        serve(Settings(server=ServerSettings(server_port=0)), lines.append)
    assert Broken.closed
    assert [line.split()[0] for line in lines] == ["open"]
    assert threading.active_count() == threads
