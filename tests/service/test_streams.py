"""All streams: found by id and owner, kept for a while, bounded together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from lmserve.errors import EventsGone, StreamNotFound
from lmserve.service.streams.stream import EVENT_BYTES, STREAM_BYTES, Stream, StreamEvent
from lmserve.service.streams.streams import Streams
from lmserve.settings import StreamSettings

EVENT = StreamEvent(b"n", b"x" * 1000)
SIZE = 1000 + EVENT_BYTES

Make = Callable[..., Streams]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    made: list[Streams] = []

    def make(**settings: float) -> Streams:
        made.append(Streams(StreamSettings(**settings)))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for streams in made:
        streams.close()
        assert streams.num_bytes == 0 and len(streams) == 0


def opened(streams: Streams, id: str, num_events: int = 0, *, ended: bool = False) -> Stream:
    stream = streams.open(id, "ann", lambda: None)
    for _ in range(num_events):
        stream.append(EVENT)
    if ended:
        streams.end(stream)
    return stream


def is_kept(streams: Streams, stream: Stream) -> bool:
    try:
        return streams.find("ann", stream.id) is stream
    except StreamNotFound:
        return False


async def test_found_by_its_owner_alone(make: Make) -> None:
    streams = make()
    stream = opened(streams, "a")
    assert streams.find("ann", "a") is stream
    for owner, id in (("bob", "a"), ("", "a"), ("ann", "b"), ("ann", "")):
        with pytest.raises(StreamNotFound):
            streams.find(owner, id)


async def test_an_id_is_used_once(make: Make) -> None:
    streams = make()
    opened(streams, "a")
    with pytest.raises(AssertionError):
        opened(streams, "a")


async def test_ended_streams_are_kept_for_a_while(make: Make) -> None:
    forgotten = asyncio.Event()
    streams = make(stream_keep_s=0.0)
    stream = streams.open("a", "ann", lambda: None, on_forgotten=forgotten.set)
    stream.append(EVENT)
    with stream.reading() as reader:
        streams.end(stream)
        streams.end(stream)
        assert is_kept(streams, stream)
        await forgotten.wait()
        assert not is_kept(streams, stream) and streams.num_bytes == 0
        assert reader.take() == (EVENT,)  # who reads it reads on


async def test_forgetting(make: Make) -> None:
    streams = make()
    stream = opened(streams, "a", 2, ended=True)
    streams.forget(stream)
    streams.forget(stream)
    assert not is_kept(streams, stream)
    again = opened(streams, "a", 1)
    streams.forget(stream)
    assert is_kept(streams, again)


async def test_one_that_ended_by_itself_is_kept_as_others(make: Make) -> None:
    forgotten = asyncio.Event()
    streams = make(stream_keep_s=0.0)
    stream = streams.open("a", "ann", lambda: None, on_forgotten=forgotten.set)
    stream.end()
    streams.end(stream)
    await forgotten.wait()


async def test_the_grace_begins_at_once(make: Make) -> None:
    abandoned = asyncio.Event()
    streams = make(stream_grace_s=0.0)
    streams.open("a", "ann", abandoned.set)
    await abandoned.wait()
    assert streams.open("b", "ann", abandoned.set, grace=False)._abandon is None


async def test_ended_streams_make_room_oldest_end_first(make: Make) -> None:
    streams = make(max_streams_bytes=3 * (STREAM_BYTES + 2 * SIZE))
    running = opened(streams, "running", 1)
    late, early = opened(streams, "late", 1), opened(streams, "early", 1)
    streams.end(early)
    streams.end(late)
    with early.reading() as reader:
        for _ in range(4):
            running.append(EVENT)
        assert (is_kept(streams, early), is_kept(streams, late)) == (False, True)
        with pytest.raises(EventsGone):
            reader.take()  # its bytes are needed
    assert running.first == 0
    assert streams.num_bytes == running.num_bytes + late.num_bytes


async def test_then_the_largest_running_one_makes_room(make: Make) -> None:
    most = 3 * STREAM_BYTES + 12 * SIZE
    streams = make(max_streams_bytes=most)
    small, large = opened(streams, "small", 2), opened(streams, "large", 8)
    ended = opened(streams, "ended", 1, ended=True)
    with small.reading() as reader, large.reading(6) as keeping_up:
        reader.take()
        keeping_up.take()
        for _ in range(5):
            small.append(EVENT)
        assert not is_kept(streams, ended)
        assert small.first == 0 and large.first > 0
        assert len(reader.take()) == 5
        large.append(EVENT)
        assert keeping_up.take() == (EVENT,)
    assert streams.num_bytes <= most
    assert streams.num_bytes == small.num_bytes + large.num_bytes


async def test_an_event_of_each_running_stream_stays(make: Make) -> None:
    streams = make(max_streams_bytes=4096)
    all_ = [opened(streams, str(number), 3) for number in range(5)]
    assert [stream.next - stream.first for stream in all_[:4]] == [1] * 4
    assert streams.num_bytes == sum(stream.num_bytes for stream in all_)


async def test_closing_ends_what_runs(make: Make) -> None:
    streams = make()
    stream = opened(streams, "a", 1)
    with stream.reading() as reader:
        reader.take()
        waiting = asyncio.create_task(reader.wait())
        await asyncio.sleep(0)
        streams.close()
        streams.close()
        await waiting
        assert reader.at_end
