"""docs/websocket.md is what the server says: its transcripts, played again on a real one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from lmserve.server.socket.document import document
from tests.e2e import transcripts
from tests.e2e.conftest import ServerProcess, serving
from tests.e2e.house import children
from tests.e2e.transcripts import CAME, LEFT_OUT, SENT, Ids, Step

PAGE = Path(__file__).parents[2] / "docs" / "websocket.md"
KEY = "sk-docs"
HEADERS = {"Authorization": f"Bearer {KEY}"}

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def server(default_server: ServerProcess, tmp_path: Path) -> Iterator[ServerProcess]:
    """As the page says; that there is a default model, `default_server` has found out. In float32
    the answers are the same whatever the processor."""
    args = ("--api-keys", KEY, "--max-batch-size", "1", "--reasoning-parser", "think")
    args += ("--dtype", "float32")
    with serving(*args, "--data-dir", str(tmp_path)) as server:
        yield server


class Player:
    """The client of the page."""

    def __init__(self, http: aiohttp.ClientSession, server: ServerProcess):
        self._http = http
        self._server = server
        self._socket: Any = None
        self._ids = Ids()
        self._may_skip = False

    async def connect(self, headers: dict[str, str]) -> None:
        await self.close()
        self._socket = await self._http.ws_connect("/v1/responses", headers=headers)

    async def close(self) -> None:
        if self._socket is not None:
            await self._socket.close()

    async def play(self, step: Step) -> None:
        match step.kind:
            case transcripts.SENT:
                await self._socket.send_json(self._ids.translate(step.frame))
            case transcripts.CAME:
                found = await self._receive(step.frame)
                self._ids.compare(step.frame, found, step.frame["type"])
            case transcripts.HAPPENED:
                await self._happen(step.text)
        self._may_skip = step.kind == LEFT_OUT

    async def _receive(self, documented: Any) -> Any:
        """The next frame; where some are left out, the next of that type and lane, so far on."""
        while True:
            found = await self._socket.receive_json(timeout=60)
            if _name(found) == _name(documented) and _delta(found) >= _delta(documented):
                return found
            waits = found["type"] == "session.queued"  # this machine may have other work
            assert self._may_skip or waits, f"{documented['type']} is {found} now"

    async def _happen(self, what: str) -> None:
        if what.startswith("the connection breaks"):
            await self.connect(HEADERS)
        elif what.startswith("POST /v1/chat/completions"):
            self._ids.compare(_first_id("strm_"), await self._chat(), "X-Stream-Id")
        else:
            assert what == "the engine's process is killed"
            (engine,) = children(self._server.pid)
            os.kill(engine, signal.SIGKILL)

    async def _chat(self) -> str:
        body = {"messages": [{"role": "user", "content": "Hi!"}], "stream": True, "max_tokens": 4}
        headers = HEADERS | {"X-Resumable": "true"}
        async with self._http.post("/v1/chat/completions", json=body, headers=headers) as response:
            await response.read()
            return response.headers["X-Stream-Id"]


def _name(frame: Any) -> Any:
    return frame["type"], frame.get("stream_id")


def _delta(frame: Any) -> int:
    is_delta = frame["type"] == "response.output_text.delta"
    return int(frame["sequence_number"]) if is_delta else 0


def _first_id(prefix: str) -> str:
    frames = (step.frame for step in transcripts.steps(PAGE) if step.kind == SENT)
    return next(id for frame in frames if (id := frame.get("response_id", "")).startswith(prefix))


async def test_the_transcripts_are_what_the_server_says(server: ServerProcess) -> None:
    async with aiohttp.ClientSession(server.url) as http:
        player = Player(http, server)
        await player.connect({})
        for step in transcripts.steps(PAGE):
            await player.play(step)
        await player.close()


def test_every_event_is_in_a_transcript() -> None:
    operations = orjson.loads(document())["operations"]
    sent, came = set(), set()
    for step in transcripts.steps(PAGE):
        if step.kind in (SENT, CAME):
            (sent if step.kind == SENT else came).add(step.frame["type"])
    for name, shown in (("receive", sent), ("send", came)):
        messages = {each["$ref"] for each in operations[name]["messages"]}
        assert {each.rpartition("/")[2] for each in messages} == shown
