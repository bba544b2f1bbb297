"""Batches over an answerer of a few words, that can die and come again in the same folder."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from lmserve.bridge.fake import FakeEngine
from lmserve.errors import LmserveError
from lmserve.ids import Ids
from lmserve.service.batches.batches import BatchAsk, Batches
from lmserve.service.batches.records import ENDED, BatchRecord
from lmserve.service.metrics import Metrics
from lmserve.settings import BatchSettings, Settings

ENDPOINT = "/v1/echo"
PATIENCE_S = 20.0


class Echo:
    """Says what it was asked, unless it is told to hold or to fail."""

    endpoints = (ENDPOINT,)

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.failures: dict[str, list[Exception]] = {}  # by text, raised one after the other
        self.held: set[str] = set()  # texts that are never answered
        self.num_running = self.most_running = 0

    async def answer(self, owner: str, endpoint: str, body: bytes) -> bytes:
        text = msgspec.json.decode(body)["text"]
        self.asked[text] += 1
        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        try:
            await asyncio.sleep(0)
            if self.failures.get(text):
                raise self.failures[text].pop(0)
            if text in self.held:
                await asyncio.Event().wait()
        finally:
            self.num_running -= 1
        usage = {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3}
        return msgspec.json.encode({"said": text, "owner": owner, "model": "echo", "usage": usage})

    def failure(self, error: LmserveError) -> bytes:
        return msgspec.json.encode({"error": error.message})


class Clerk:
    """A server's batches, with time of their own."""

    def __init__(self, folder: Path, echo: Echo, **settings: int):
        self.folder = folder
        self.echo = echo
        self.now_s = 1_000_000.0
        self.at_leisure = True
        engine = FakeEngine()
        everything = Settings(batches=BatchSettings(**settings))
        self.metrics = Metrics(engine, everything)
        self.batches = Batches(
            everything,
            Ids(),
            self.metrics,
            echo,
            lambda: self.at_leisure,
            clock=lambda: self.now_s,
        )

    async def upload(self, content: bytes, purpose: str = "batch") -> str:
        upload = self.batches.files.upload()
        await upload.write(content)
        record = await upload.keep("me", filename="a", purpose=purpose, expires_after_s=None)
        return record.id

    async def begin(self, texts: Sequence[str], **asked: str) -> BatchRecord:
        lines = [
            {"custom_id": text, "method": "POST", "url": ENDPOINT, "body": {"text": text}}
            for text in texts
        ]
        content = b"\n".join(map(msgspec.json.encode, lines))
        ask = {"endpoint": ENDPOINT, "completion_window": "24h"} | asked
        return await self.batches.create(BatchAsk("me", await self.upload(content), **ask))

    async def ended(self, batch: BatchRecord) -> BatchRecord:
        await until(lambda: self.batches.get("me", batch.id).status in ENDED)
        return self.batches.get("me", batch.id)

    def told(self, file_id: str | None) -> list[str]:
        """The custom ids in this file."""
        if file_id is None:
            return []
        lines = self.batches.files.path(file_id).read_bytes().splitlines()
        return [msgspec.json.decode(line)["custom_id"] for line in lines]


async def until(holds: object) -> None:
    assert callable(holds)
    async with asyncio.timeout(PATIENCE_S):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@asynccontextmanager
async def serving(folder: Path, echo: Echo, **settings: int) -> AsyncIterator[Clerk]:
    clerk = Clerk(folder, echo, **settings)
    await clerk.batches.open(folder)
    try:
        yield clerk
    finally:
        await clerk.batches.close()
    assert echo.num_running == 0


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
async def clerk(tmp_path: Path, echo: Echo) -> AsyncIterator[Clerk]:
    async with serving(tmp_path, echo) as made:
        yield made
