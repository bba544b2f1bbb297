"""Whatever appends, joins, lags, leaves and ends in whatever order: each reader gets exactly the
events after its cursor, once, in order; or is told that it was too slow, and was."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from lmserve.errors import EventsGone
from lmserve.service.streams.stream import EVENT_BYTES, STREAM_BYTES, Reader, Stream, StreamEvent

ROOM = 8 * (10 + EVENT_BYTES)

APPEND = st.tuples(st.just("append"), st.integers(1, 300))
JOIN = st.tuples(st.just("join"), st.integers(0, 30), st.integers(1, 4), st.booleans())
WAKE = st.tuples(st.just("wake"), st.integers(0, 9))
LEAVE = st.tuples(st.just("leave"), st.integers(0, 9))
TURN = st.tuples(st.just("turn"))
DROP = st.tuples(st.just("drop"), st.integers(1, 500))
OPS = st.lists(st.one_of(APPEND, APPEND, JOIN, WAKE, WAKE, LEAVE, TURN, TURN, DROP), max_size=60)


@dataclass
class Client:
    """Follows until its patience is out, then lags until it is woken; then takes in parts."""

    stream: Stream
    cursor: int
    patience: int
    by_parts: bool
    got: list[StreamEvent] = field(default_factory=list)
    too_slow: bool = False
    woken: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        with self.stream.reading(self.cursor) as reader:
            try:
                while not reader.at_end:
                    await self._read(reader)
            except EventsGone:
                assert reader.next < self.stream.first
                self.too_slow = True

    async def _read(self, reader: Reader) -> None:
        await reader.wait()
        self.got += reader.take(200 if self.by_parts else None)
        left = self.patience

        def show(number: int, event: StreamEvent) -> bool:
            nonlocal left
            assert number == self.cursor + 1 + len(self.got)
            self.got.append(event)
            left -= 1
            return left > 0

        await reader.follow(show)
        self.woken.clear()
        if not self.stream.ended:
            await self.woken.wait()


@given(OPS)
def test_readers_get_exactly_what_follows_their_cursor(ops: list[tuple[object, ...]]) -> None:
    asyncio.run(play(ops))


async def play(ops: list[tuple[object, ...]]) -> None:
    stream = Stream("strm_1", "ann", max_bytes=STREAM_BYTES + ROOM)
    told: list[StreamEvent] = []
    clients: list[tuple[Client, asyncio.Task[None]]] = []
    for op in ops:
        match op:
            case ("append", int(size)):
                told.append(StreamEvent(b"", b"%d " % len(told) + b"x" * size))
                stream.append(told[-1])
            case ("join", int(back), int(patience), bool(by_parts)):
                cursor = max(stream.first - 1, len(told) - 1 - back)
                client = Client(stream, cursor, patience, by_parts)
                clients.append((client, asyncio.create_task(client.run())))
                await asyncio.sleep(0)  # it has joined
            case ("wake", int(index)) if index < len(clients):
                clients[index][0].woken.set()
            case ("leave", int(index)) if index < len(clients):
                clients[index][1].cancel()
            case ("drop", int(num_bytes)):
                stream.drop(num_bytes)
            case _:
                await asyncio.sleep(0)
        assert stream.next == len(told)
        kept = stream.since(stream.first)
        assert list(kept) == told[stream.first :]
        assert stream.num_bytes == STREAM_BYTES + sum(len(e.data) + EVENT_BYTES for e in kept)
        assert stream.num_bytes <= STREAM_BYTES + ROOM or len(kept) == 1
    stream.end()
    for client, _ in clients:
        client.woken.set()
    await asyncio.gather(*(task for _, task in clients), return_exceptions=True)
    for client, task in clients:
        after = told[client.cursor + 1 :]
        if task.cancelled() or client.too_slow:
            assert client.got == after[: len(client.got)]
        else:
            assert task.exception() is None and client.got == after
    assert stream.num_readers == 0
