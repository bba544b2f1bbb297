"""Files that are read again: when they changed and are at rest, and when somebody asks."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from lmserve.edge import reload
from lmserve.edge.reload import Reloads
from lmserve.errors import SetupError


class Watched:
    """A number in a file."""

    def __init__(self, path: Path):
        self.path = path
        self.value = 0
        self.reads = 0
        self.looks = asyncio.Event()

    def read(self) -> None:
        self.reads += 1
        text = self.path.read_text()
        if not text.isdigit():
            raise SetupError(f"{text} is no number")
        self.value = int(text)

    async def looked(self, times: int = 1) -> None:
        async with asyncio.timeout(30):
            for _ in range(times):
                self.looks.clear()
                await self.looks.wait()

    async def until(self, value: int) -> None:
        async with asyncio.timeout(30):
            while self.value != value:
                self.looks.clear()
                await self.looks.wait()


@asynccontextmanager
async def watching(watched: Watched) -> AsyncIterator[Reloads]:
    reloads = Reloads()
    reloads.add("the number", [str(watched.path)], watched.read)
    reloads.after.append(watched.looks.set)
    async with reloads.running():
        yield reloads


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watched:
    monkeypatch.setattr(reload, "INTERVAL_S", 0.01)
    path = tmp_path / "number"
    path.write_text("1")
    return Watched(path)


async def test_read_when_it_changes_and_not_else(watched: Watched) -> None:
    async with watching(watched):
        assert watched.value == 1
        await watched.looked(3)
        assert watched.reads == 1
        watched.path.write_text("22")
        await watched.until(22)
        other = watched.path.with_name("other")
        other.write_text("3")
        os.replace(other, watched.path)
        await watched.until(3)


async def test_what_is_damaged_or_gone_is_told_once(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        async with watching(watched):
            watched.path.write_text("none")
            async with asyncio.timeout(30):
                while watched.reads < 2:
                    await watched.looked()
            await watched.looked(3)
            assert (watched.value, watched.reads) == (1, 2)
            assert [record.getMessage() for record in caplog.records] == [
                "the number: what was read before stays: none is no number"
            ]
            watched.path.write_text("4")
            await watched.until(4)


async def test_read_when_asked(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload, "INTERVAL_S", 3600)
    async with watching(watched) as reloads:
        watched.path.write_text("5")
        reloads.now()
        await watched.until(5)


async def test_a_bug_does_not_end_it(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    async with watching(watched) as reloads:
        reloads.after.insert(0, lambda: 1 / 0)
        reloads.after.reverse()  # the look is still told
        await watched.looked(2)
    assert "cannot be looked at" in caplog.text


async def test_what_is_wrong_at_the_start_is_raised(watched: Watched) -> None:
    watched.path.write_text("none")
    with pytest.raises(SetupError, match="no number"):
        async with watching(watched):
            pass
