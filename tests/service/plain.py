"""A narrator in plain words, and answers over the fake engine."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from lmserve.bridge.fake import FakeEngine
from lmserve.service.answers.answers import Answer, Answers
from lmserve.service.answers.records import Ask, Notice, Record
from lmserve.service.generate import Service
from lmserve.service.metrics import Metrics
from lmserve.service.sessions.sessions import Sessions
from lmserve.service.streams.stream import Stream, StreamEvent
from lmserve.service.streams.streams import Streams
from lmserve.service.warm.warming import Warming
from lmserve.settings import (
    EngineSettings,
    ServerSettings,
    SessionSettings,
    Settings,
    StreamSettings,
)
from lmserve.types import CallBegun, GenerateRequest, TextDelta


class PlainNarrator:
    """Each event says its name, its number and what it is about."""

    def opening(self, record: Record, number: int) -> Sequence[StreamEvent]:
        assert record.status in ("in_progress", "queued")
        assert record.ended is None
        return (event("created", number, record.id), event("in_progress", number + 1, record.id))

    def delta(self, delta: TextDelta, number: int) -> Sequence[StreamEvent]:
        if delta.parts is None:
            return (event("delta", number, delta.text),)
        parts = [part for part in delta.parts if not isinstance(part, CallBegun)]
        return [
            event(type(part).__name__, number + index, part.text)
            for index, part in enumerate(parts)
        ]

    def notice(self, notice: Notice, number: int) -> StreamEvent:
        return event(type(notice).__name__, number, repr(notice))

    def closing(self, record: Record, number: int) -> Sequence[StreamEvent]:
        assert record.ended is not None
        return (event("text", number, record.text), event(record.status, number + 1, record.reason))


def event(name: str, number: int, about: Any) -> StreamEvent:
    return StreamEvent(name.encode(), json.dumps([number, about]).encode())


def told(stream: Stream, starting_after: int = -1) -> list[tuple[str, Any]]:
    """What is there now; the numbers are those of its events."""
    with stream.reading(starting_after) as reader:
        events = reader.take()
    for number, each in enumerate(events, starting_after + 1):
        assert json.loads(each.data)[0] == number
    return [(each.name.decode(), json.loads(each.data)[1]) for each in events]


def names(stream: Stream) -> list[str]:
    return [name for name, _ in told(stream)]


def said(stream: Stream) -> str:
    return "".join(about for name, about in told(stream) if name == "delta")


def ask(*texts: str, owner: str = "", fields: dict[str, Any] | None = None, **about: Any) -> Ask:
    messages: list[dict[str, Any]] = [{"role": "user", "content": text} for text in texts]
    return Ask(owner, GenerateRequest(**({"messages": messages} | (fields or {}))), **about)


async def finish(answer: Answer) -> Record:
    """Reads it to its end."""
    with answer.stream.reading() as reader:
        while not reader.at_end:
            await reader.wait()
            reader.take()
    return await answer.ended()


class Place:
    """A server's parts, that can die and come again in the same folder."""

    def __init__(
        self,
        folder: Path,
        engine: FakeEngine,
        *,
        warmth: Warming | None = None,
        server: ServerSettings | None = None,
        **streams: Any,
    ):
        self.engine = engine
        self._options = SessionSettings(data_dir=str(folder))
        settings = Settings(
            engine=EngineSettings(engine="mock"),
            sessions=self._options,
            server=server or ServerSettings(),
        )
        self.service = Service(engine, settings, Metrics(engine, settings))
        self.sessions = Sessions(self.service, self._options, clock=self.clock, warmth=warmth)
        self.streams = Streams(StreamSettings(**streams))
        self.answers = Answers(self.service, self.sessions, self.streams, PlainNarrator)
        self.now_s = 1000.0

    def clock(self) -> float:
        return self.now_s

    async def open(self) -> None:
        await self.sessions.open()
        await self.answers.open()

    async def close(self) -> None:
        self.service.close()
        await self.answers.close()
        await self.sessions.close()
        self.streams.close()
        assert self.service.inflight == 0
        assert not self.sessions.turns.busy


@asynccontextmanager
async def opened(place: Place) -> AsyncIterator[Place]:
    await place.open()
    try:
        yield place
    finally:
        await place.close()


async def say(place: Place, asked: Ask) -> Record:
    """The stream has ended too, then."""
    answer = await place.answers.begin(asked)
    record = await finish(answer)
    assert answer.stream.ended
    return record


async def stored(place: Place, record: Record) -> tuple[Record, list[tuple[str, Any]]]:
    """As it is on disk, and what it told."""
    home, found = await place.answers._archive.find(record.owner, record.id)
    return found, told(await place.answers._archive.stream(home, found))
