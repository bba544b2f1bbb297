"""One stream: its log, its readers, its grace."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from lmserve.errors import EventsGone, InvalidField
from lmserve.service.streams.stream import EVENT_BYTES, STREAM_BYTES, Reader, Stream, StreamEvent

SIZE = 100 + EVENT_BYTES  # of the events here


def event(number: int) -> StreamEvent:
    return StreamEvent(b"n", b"%100d" % number)


def numbers(events: Sequence[StreamEvent]) -> list[int]:
    return [int(event.data) for event in events]


def stream_of(num_events: int, *, most: int = 100, ended: bool = False) -> Stream:
    """With room for `most` events."""
    stream = Stream("strm_1", "ann", max_bytes=STREAM_BYTES + most * SIZE)
    for number in range(num_events):
        stream.append(event(number))
    if ended:
        stream.end()
    return stream


async def follow(reader: Reader, told: list[int], patience: int = 1000) -> None:
    def show(number: int, event: StreamEvent) -> bool:
        assert int(event.data) == number
        told.append(number)
        return len(told) < patience

    await reader.follow(show)


async def turn() -> None:
    await asyncio.sleep(0)


# --- the log --------------------------------------------------------------------------------


def test_events_are_numbered_from_0() -> None:
    stream = stream_of(3)
    assert (stream.first, stream.next, stream.num_bytes) == (0, 3, STREAM_BYTES + 3 * SIZE)
    with stream.reading() as reader:
        assert numbers(reader.take()) == [0, 1, 2]
        assert reader.take() == ()


def test_the_oldest_make_room() -> None:
    stream = stream_of(7, most=3)
    assert (stream.first, stream.next) == (4, 7)
    assert stream.num_bytes == STREAM_BYTES + 3 * SIZE
    with stream.reading(3) as reader:
        assert numbers(reader.take()) == [4, 5, 6]


def test_the_last_event_stays_however_large() -> None:
    stream = stream_of(2, most=2)
    stream.append(StreamEvent(b"", b"2" * 10_000))
    assert (stream.first, stream.next) == (2, 3)
    assert not stream.drop(1)


def test_dropping_says_how_much() -> None:
    stream = stream_of(5)
    assert stream.drop(SIZE + 1) == 2 * SIZE
    assert stream.first == 2
    assert stream.drop(10**9) == 2 * SIZE
    assert (stream.first, stream.next) == (4, 5)


@pytest.mark.parametrize("cursor", [-2, 3, 4, 10**15])
def test_a_cursor_that_never_was(cursor: int) -> None:
    with pytest.raises(InvalidField, match=f"starting_after is {cursor}"):
        stream_of(3).check_cursor(cursor)
    with pytest.raises(InvalidField, match="no event has been"):
        stream_of(0).check_cursor(0)


@pytest.mark.parametrize("ended", [False, True])
def test_a_cursor_whose_events_are_gone(ended: bool) -> None:
    stream = stream_of(7, most=3, ended=ended)
    for cursor in (-1, 0, 2):
        with pytest.raises(EventsGone), stream.reading(cursor):
            pass
    assert stream.num_readers == 0
    stream.check_cursor(3)
    stream.check_cursor(6)


def test_a_long_wait_is_taken_in_parts() -> None:
    with stream_of(10).reading(1) as reader:
        assert numbers(reader.take(250)) == [2, 3, 4]
        assert numbers(reader.take(1)) == [5]
        assert numbers(reader.take()) == [6, 7, 8, 9]


# --- readers --------------------------------------------------------------------------------


async def test_waiting_ends_with_an_event() -> None:
    stream = stream_of(0)
    with stream.reading() as reader:
        waiting = asyncio.create_task(reader.wait())
        await turn()
        assert not waiting.done() and not reader.at_end
        stream.append(event(0))
        await waiting
        assert numbers(reader.take()) == [0]


async def test_waiting_ends_with_the_end() -> None:
    stream = stream_of(1)
    with stream.reading(0) as reader:
        waiting = asyncio.create_task(reader.wait())
        await turn()
        assert not waiting.done()
        stream.end()
        await waiting
        assert reader.at_end and reader.take() == ()
        await reader.wait()


async def test_followers_are_told_in_the_turn_that_appends() -> None:
    stream = stream_of(2)
    early: list[int] = []
    late: list[int] = []
    with stream.reading() as one, stream.reading(0) as two:
        tasks = [asyncio.create_task(follow(one, early)), asyncio.create_task(follow(two, late))]
        await turn()
        stream.append(event(2))
        assert (early, late) == ([0, 1, 2], [1, 2])
        stream.end()
        await asyncio.gather(*tasks)


async def test_following_an_ended_stream_returns() -> None:
    told: list[int] = []
    with stream_of(3, ended=True).reading(0) as reader:
        await follow(reader, told)
    assert told == [1, 2]


async def test_a_follower_that_lags_goes_on_from_its_place() -> None:
    stream = stream_of(0)
    told: list[int] = []
    with stream.reading() as reader:
        following = asyncio.create_task(follow(reader, told, patience=2))
        await turn()
        for number in range(5):
            stream.append(event(number))
        await following
        assert told == [0, 1] and reader.behind
        assert numbers(reader.take()) == [2, 3, 4]


async def test_a_follower_that_lags_among_waiting_events() -> None:
    told: list[int] = []
    with stream_of(5).reading() as reader:
        await follow(reader, told, patience=3)
        assert numbers(reader.take()) == [3, 4]


@pytest.mark.parametrize("ended", [False, True])
async def test_a_reader_that_was_too_slow_is_told(ended: bool) -> None:
    stream = stream_of(2, most=3)
    with stream.reading() as reader:
        for number in range(2, 6):
            stream.append(event(number))
        if ended:
            stream.end()
        assert not reader.at_end
        await reader.wait()
        with pytest.raises(EventsGone):
            reader.take()
        with pytest.raises(EventsGone):
            await follow(reader, [])


async def test_what_show_raises_reaches_its_reader_and_nobody_else() -> None:
    stream = stream_of(0)
    told: list[int] = []

    def broken(number: int, event: StreamEvent) -> bool:
        raise ConnectionResetError

    with stream.reading() as bad, stream.reading() as good:
        failing = asyncio.create_task(bad.follow(broken))
        following = asyncio.create_task(follow(good, told))
        await turn()
        stream.append(event(0))
        stream.append(event(1))
        with pytest.raises(ConnectionResetError):
            await failing
        stream.end()
        await following
    assert told == [0, 1]


@pytest.mark.parametrize("failing", [False, True])
async def test_a_cancelled_reader_is_left_alone(failing: bool) -> None:
    stream = stream_of(0)

    def show(number: int, event: StreamEvent) -> bool:
        if failing:
            raise ConnectionResetError
        return True

    async def handler(reader: Reader) -> None:
        await reader.follow(show)

    with stream.reading() as one, stream.reading() as two:
        tasks = [asyncio.create_task(handler(one)), asyncio.create_task(two.wait())]
        await turn()
        for task in tasks:
            task.cancel()
        stream.append(event(0))  # before they run
        await asyncio.wait(tasks)
        assert all(task.cancelled() for task in tasks)
        stream.append(event(1))
        assert numbers(two.take()) == [0, 1]
    assert stream.num_readers == 0


async def test_a_reader_is_one_tasks() -> None:
    with stream_of(0).reading() as reader:
        waiting = asyncio.create_task(reader.wait())
        await turn()
        with pytest.raises(AssertionError, match="one task's"):
            await follow(reader, [])
        waiting.cancel()


# --- grace ----------------------------------------------------------------------------------


class Graced:
    """A stream that says when it was abandoned."""

    def __init__(self, grace_s: float = 0.0) -> None:
        self.abandoned = asyncio.Event()
        self.stream = Stream(
            "strm_1", "ann", max_bytes=10**6, grace_s=grace_s, on_abandoned=self.abandoned.set
        )


async def test_abandoned_when_the_last_reader_has_left() -> None:
    graced = Graced()
    with graced.stream.reading():
        with graced.stream.reading():
            pass
        assert graced.stream._abandon is None  # one is there
    await graced.abandoned.wait()


async def test_abandoned_where_nobody_comes() -> None:
    graced = Graced()
    graced.stream.await_reader()
    await graced.abandoned.wait()


async def test_a_reader_in_time_ends_the_grace() -> None:
    graced = Graced(grace_s=1000.0)
    graced.stream.await_reader()
    timer = graced.stream._abandon
    assert timer is not None
    with graced.stream.reading():
        assert timer.cancelled()
    assert graced.stream._abandon is not None
    graced.stream.end()
    assert graced.stream._abandon is None


async def test_an_ended_stream_is_never_abandoned() -> None:
    graced = Graced()
    graced.stream.end()
    graced.stream.await_reader()
    with graced.stream.reading():
        pass
    assert graced.stream._abandon is None


async def test_without_a_grace_it_goes_on_alone() -> None:
    stream = stream_of(0)
    with stream.reading():
        pass
    stream.await_reader()
    assert stream._abandon is None
