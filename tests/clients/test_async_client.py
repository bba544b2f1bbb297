"""The asyncio client: the same verbs, nothing that blocks, and answers that end when left."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx2
import pytest
from blockbuster import blockbuster_ctx
from lmserve_client import (
    APIConnectionError,
    APIResponseError,
    APIStatusError,
    APIStreamError,
    APITimeoutError,
    AsyncAPIClient,
)

from lmserve.bridge.fake import FakeEngine
from lmserve.bridge.mailbox import Mailbox
from lmserve.server.lifecycle import Server, running_server
from lmserve.settings import EngineSettings, ServerSettings, SessionSettings, Settings

HI = [{"role": "user", "content": "hi"}]
ANSWER = b'{"text":"hi","tokens":1,"finish_reason":"stop"}'


@pytest.fixture(scope="module", autouse=True)
def imports() -> None:
    """httpx2 imports parts of itself at its first client: once, and not counted as blocking."""
    httpx2.AsyncClient()


@pytest.fixture(autouse=True)
def no_blocking(imports: None) -> Iterator[None]:
    with blockbuster_ctx("lmserve_client"):
        yield


@pytest.fixture
async def fake() -> WatchedEngine:
    return WatchedEngine()


@pytest.fixture
async def server(fake: WatchedEngine, tmp_path: Path) -> AsyncIterator[Server]:
    settings = Settings(
        server=ServerSettings(server_port=0, model_name="mock", drain_timeout_s=0.2),
        engine=EngineSettings(engine="mock"),
        sessions=SessionSettings(data_dir=str(tmp_path)),
    )
    async with running_server(settings, fake) as running:
        yield running


@pytest.fixture
async def client(server: Server) -> AsyncIterator[AsyncAPIClient]:
    async with AsyncAPIClient(server.url, read_timeout_s=20) as client:
        yield client


class WatchedEngine(FakeEngine):
    """Tells when a request came and when one was aborted."""

    def __init__(self) -> None:
        super().__init__()
        self.submitted = asyncio.Event()
        self.aborted = asyncio.Event()

    def submit(self, *args: Any, **kwargs: Any) -> Mailbox:
        self.submitted.set()
        return super().submit(*args, **kwargs)

    def abort(self, mailbox: Mailbox) -> None:
        super().abort(mailbox)
        if self.aborts:
            self.aborted.set()


async def test_models(client: AsyncAPIClient) -> None:
    assert await client.available_models() == ["mock"]


async def test_chat_completions(client: AsyncAPIClient, fake: WatchedEngine) -> None:
    fake.will_say("Hel", "lo").will_say("Hel", "lo")
    (whole,) = [item async for item in client.chat_completions_v1("mock", HI)]
    assert whole["choices"][0]["message"]["content"] == "Hello"
    text = ""
    async for chunk in client.chat_completions_v1("mock", HI, stream=True):
        text += chunk["choices"][0]["delta"].get("content") or ""
    assert text == "Hello"


async def test_completions(client: AsyncAPIClient, fake: WatchedEngine) -> None:
    fake.will_say("Hel", "lo")
    chunks = [item async for item in client.completions_v1("mock", "hi", stream=True)]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "Hello"


async def test_a_session(client: AsyncAPIClient, fake: WatchedEngine) -> None:
    fake.will_say("Hel", "lo").will_say("again")
    parts = [part async for part in client.chat("hi", 5, stream=True)]
    assert "".join(part.text for part in parts) == "Hello"
    assert parts[-1].finish_reason == "stop"
    async for text, _, _ in client.chat("and", 5):
        assert text == "again"
    assert (await client.cancel(5))["text"] == ""
    await client.end_session(5)
    fake.will_say("new")
    (line,) = [line async for line in client.chat_interactive_v1("hi", 5)]
    assert (line["text"], line["history_tokens"]) == ("new", 0)


async def test_encode(client: AsyncAPIClient) -> None:
    one = await client.encode("hi")
    assert one.length == len(one.input_ids)
    many = await client.encode(["hi", "you"])
    assert many.length == [len(ids) for ids in many.input_ids]


async def test_closing_the_generator_ends_the_answer(
    client: AsyncAPIClient, fake: WatchedEngine
) -> None:
    fake.will_hang("Hel")
    async with aclosing(client.chat_completions_v1("mock", HI, stream=True)) as chunks:
        await anext(chunks)
    await fake.aborted.wait()


@pytest.mark.parametrize("stream", [True, False])
async def test_cancelling_the_task_ends_the_answer(
    client: AsyncAPIClient, fake: WatchedEngine, stream: bool
) -> None:
    fake.will_hang("Hel")

    async def read() -> None:
        async for _ in client.chat_completions_v1("mock", HI, stream=stream):
            pass

    task = asyncio.create_task(read())
    await fake.submitted.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await fake.aborted.wait()


async def test_many_at_once(client: AsyncAPIClient, fake: WatchedEngine) -> None:
    async def ask(n: int) -> int:
        async for answer in client.completions_v1("mock", f"story {n}", max_tokens=n):
            return answer["usage"]["completion_tokens"]
        raise AssertionError("no answer")

    assert await asyncio.gather(*map(ask, range(1, 17))) == list(range(1, 17))


async def test_errors(client: AsyncAPIClient, fake: WatchedEngine, scripted: Any) -> None:
    with pytest.raises(APIStatusError) as caught:
        await anext(client.chat_completions_v1("nope", HI, stream=True))
    assert (caught.value.status, caught.value.param) == (404, "model")
    fake.will_fail("out of luck", "Hel")
    with pytest.raises(APIStreamError, match="out of luck"):
        async for _ in client.chat_completions_v1("mock", HI, stream=True):
            pass
    scripted.will_answer(ANSWER + b"\n", length=500).will_answer(ANSWER, length=500)
    scripted.will_answer(b"<html>")
    async with AsyncAPIClient(scripted.url) as broken:
        for stream in (True, False):
            with pytest.raises(APIConnectionError):
                async for _ in broken.chat_interactive_v1("hi", stream=stream):
                    pass
        with pytest.raises(APIResponseError):
            await broken.available_models()
    async with AsyncAPIClient(client.api_server_url, read_timeout_s=0.3) as hasty:
        fake.will_hang("Hel")
        with pytest.raises(APITimeoutError):
            async for _ in hasty.chat_completions_v1("mock", HI, stream=True):
                pass


async def test_retries(scripted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    async def sleep(delay_s: float) -> None:
        waited.append(delay_s)

    monkeypatch.setattr("lmserve_client.async_client.asyncio.sleep", sleep)
    scripted.will_answer(b"{}", "503 Loading", "Retry-After: 2").will_answer(ANSWER)
    async with AsyncAPIClient(scripted.url, max_retry_after_s=5) as client:
        assert [line async for line in client.chat_interactive_v1("hi")] == [json.loads(ANSWER)]
    url = scripted.url
    scripted.close()
    async with AsyncAPIClient(url) as client:
        with pytest.raises(APIConnectionError):
            await client.end_session(1)
    assert waited == [2.0, 0.25, 0.5]
