"""A server over a fake engine that takes short prompts, and what must hold whatever it is sent."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp.test_utils import TestClient
from pytest_aiohttp import AiohttpClient

from lmserve.bridge.fake import FakeEngine
from lmserve.server import keys
from lmserve.server.app import build_app
from lmserve.settings import EngineSettings, ServerSettings, SessionSettings, Settings
from tests.hardening.doors import USER

SESSION_LEN = 2048
Stream = Callable[[Any], Awaitable[bytes | str]]
_CHANGES = re.compile(rb'"(id|created)":("[a-z]+-[0-9a-f]{32}"|[0-9]+)')


class Counted(FakeEngine):
    """Tells what it holds."""

    @property
    def num_open(self) -> int:
        return len(self._mailboxes)


@pytest.fixture
def fake() -> Counted:
    return Counted(EngineSettings(engine="mock", session_len=SESSION_LEN), record=False)


@pytest.fixture
async def client(
    aiohttp_client: AiohttpClient, fake: Counted, tmp_path: Path
) -> AsyncIterator[TestClient]:
    settings = Settings(
        sessions=SessionSettings(data_dir=str(tmp_path)),
        server=ServerSettings(server_port=0, model_name="mock", drain_timeout_s=0.2),
        engine=EngineSettings(engine="mock", session_len=SESSION_LEN),
    )
    client = await aiohttp_client(build_app(settings, fake))
    assert (await client.post("/v1/sessions", json={"id": "hardened"})).status == 200
    async with undisturbed(client):
        yield client
    await nothing_held(client, fake)


async def nothing_held(client: TestClient, fake: Counted) -> None:
    """Neither a request, nor its tokens, nor its body; and the server says that it is well."""
    assert client.app is not None
    service, read = client.app[keys.SERVICE], client.app[keys.BODY_BYTES]

    def held() -> tuple[int, ...]:
        admission = service._admission
        return fake.num_open, admission.num_requests, admission.num_tokens, read.num_bytes

    for _ in range(100):  # what was let go ends at its next step
        if not any(held()):
            break
        await asyncio.sleep(0.01)
    assert held() == (0, 0, 0, 0)
    health = await client.get("/health")
    assert health.status == 200, await health.text()


@asynccontextmanager
async def undisturbed(client: Any, stream: Stream | None = None) -> AsyncIterator[None]:
    """Streams that others have go on beside it, the same to the byte."""
    stream = stream or _stream
    alone = await stream(client)
    stopping = asyncio.Event()

    async def others() -> int:
        num_streams = 0
        while not stopping.is_set() or not num_streams:
            assert await stream(client) == alone
            num_streams += 1
        return num_streams

    task = asyncio.create_task(others())
    try:
        yield
    finally:
        stopping.set()
        await task


async def said(client: Any) -> str:
    """As `_stream`, of a server that is slow: how much comes in a chunk is a matter of time."""
    chunks = [orjson.loads(event[6:]) for event in (await _stream(client)).split(b"\n\n")[:-2]]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    return f"{text} {choices[-1]['finish_reason']}"


async def _stream(client: Any) -> bytes:
    asked = {"messages": [USER], "stream": True, "temperature": 0, "max_tokens": 40}
    async with client.post("/v1/chat/completions", json=asked) as response:
        assert response.status == 200, await response.text()
        return _CHANGES.sub(b'"\\1":0', await response.read())


def told(body: bytes) -> tuple[str, str | None]:
    """The message of a refusal and the field it names, in any API's words."""
    parsed = orjson.loads(body)
    error = parsed["error"]
    message = error if isinstance(error, str) else error["message"]
    assert message and "\n" not in message and "Traceback" not in message, message
    assert len(message) < 2000, message
    return message, error.get("param") if isinstance(error, dict) else None
