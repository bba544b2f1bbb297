"""One stream of events, kept so that it can be read again: by whoever was cut off, by several
readers at once, on any transport.

Events are numbered from 0; the number is the cursor, on every route. One producer appends, and
never waits for a reader; a reader is a place in the log. The log is bounded: its oldest events
make room.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from lmserve.errors import EventsGone, InvalidField

# What they take in memory beside their data.
STREAM_BYTES = 2048
EVENT_BYTES = 128


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """As it goes out, on whatever transport."""

    name: bytes  # of the event in SSE; b"" for streams whose events have no names
    data: bytes  # one JSON object, or b"[DONE]"


class Stream:
    """Lives on one loop. `on_abandoned` is called once it was without a reader for `grace_s`
    while it had not ended (None: it may go on alone); `on_growth` after each event, with the
    bytes that it took."""

    def __init__(
        self,
        id: str,
        owner: str,
        *,
        max_bytes: int,
        grace_s: float | None = None,
        on_abandoned: Callable[[], None] = lambda: None,
        on_growth: Callable[[int], None] = lambda num_bytes: None,
    ):
        self.id = id
        self.owner = owner
        self.first = 0  # the oldest event that is kept
        self.ended = False
        self.num_bytes = STREAM_BYTES
        self._events: deque[StreamEvent] = deque()
        self._max_bytes = max_bytes
        self._readers: set[Reader] = set()
        self._grace_s = grace_s
        self._on_abandoned = on_abandoned
        self._on_growth = on_growth
        self._abandon: asyncio.TimerHandle | None = None

    @property
    def next(self) -> int:
        """The number of the event that comes next."""
        return self.first + len(self._events)

    @property
    def num_readers(self) -> int:
        return len(self._readers)

    # --- the producer -----------------------------------------------------------------

    def append(self, event: StreamEvent) -> None:
        assert not self.ended
        before = self.num_bytes
        self._events.append(event)
        self.num_bytes += len(event.data) + EVENT_BYTES
        if self.num_bytes > self._max_bytes:
            self.drop(self.num_bytes - self._max_bytes)
        self._tell()
        self._on_growth(self.num_bytes - before)

    def end(self) -> None:
        """No event follows. Idempotent."""
        self.ended = True
        self._keep_going()
        self._tell()

    def await_reader(self) -> None:
        """The grace begins now, unless there is a reader."""
        if self._grace_s is not None and not self.ended and not self._readers:
            self._keep_going()
            loop = asyncio.get_running_loop()
            self._abandon = loop.call_later(self._grace_s, self._on_abandoned)

    # --- room -------------------------------------------------------------------------

    def drop(self, num_bytes: int) -> int:
        """Drops the oldest events, this much or more of them, but never the last; says how
        much."""
        before = self.num_bytes
        while before - self.num_bytes < num_bytes and len(self._events) > 1:
            self._drop_oldest()
        return before - self.num_bytes

    def clear(self) -> None:
        """Drops all events of an ended stream; who still reads it is told."""
        assert self.ended
        while self._events:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        self.num_bytes -= len(self._events.popleft().data) + EVENT_BYTES
        self.first += 1

    # --- readers ----------------------------------------------------------------------

    @contextmanager
    def reading(self, starting_after: int = -1) -> Iterator[Reader]:
        """A reader of what follows that event. Raises InvalidField where no such event has been,
        EventsGone where what follows it is no longer kept."""
        self.check_cursor(starting_after)
        reader = Reader(self, starting_after + 1)
        self._readers.add(reader)
        self._keep_going()
        try:
            yield reader
        finally:
            self._readers.discard(reader)
            self.await_reader()

    def check_cursor(self, starting_after: int) -> None:
        """Raises as `reading` does."""
        if not -1 <= starting_after < self.next:
            last = f"the last event so far is {self.next - 1}" if self.next else "no event has been"
            raise InvalidField(
                f"starting_after is {starting_after}, and in {self.id} {last}: give the number of "
                "the last event that you have",
                param="starting_after",
            )
        if starting_after + 1 < self.first:
            raise self._gone()

    def since(self, number: int, max_bytes: int | None = None) -> Sequence[StreamEvent]:
        """The events from this number on: all, or the first that make up so much. Raises
        EventsGone."""
        if number < self.first:
            raise self._gone()
        if number == self.next - 1:
            return (self._events[-1],)  # nearly always, while a reader keeps up
        events: list[StreamEvent] = []
        num_bytes = 0
        for at in range(number - self.first, len(self._events)):
            if max_bytes is not None and num_bytes >= max_bytes:
                break
            events.append(self._events[at])
            num_bytes += len(events[-1].data)
        return events

    def _gone(self) -> EventsGone:
        return EventsGone(
            f"the events of {self.id} before {self.first} are no longer kept: read the answer "
            "whole, then follow it from there",
            param="starting_after",
        )

    def _keep_going(self) -> None:
        if self._abandon is not None:
            self._abandon.cancel()
            self._abandon = None

    def _tell(self) -> None:
        for reader in tuple(self._readers):
            reader._on_more()


class Reader:
    """One reader's place: `take` what waits, then `wait` or `follow`; one task's."""

    def __init__(self, stream: Stream, next: int):
        self.next = next  # the number of the event it reads next
        self._stream = stream
        self._waiter: asyncio.Future[None] | None = None
        self._listener: Callable[[], None] | None = None

    @property
    def behind(self) -> bool:
        """Something waits."""
        return self.next < self._stream.next

    @property
    def at_end(self) -> bool:
        """Nothing waits, and nothing follows."""
        return self._stream.ended and not self.behind

    def take(self, max_bytes: int | None = None) -> Sequence[StreamEvent]:
        """What waits, or the first of it that makes up so much; perhaps nothing. Raises
        EventsGone where this reader was too slow."""
        events = self._stream.since(self.next, max_bytes) if self.behind else ()
        self.next += len(events)
        return events

    async def wait(self) -> None:
        """Returns when something waits or nothing follows."""
        assert self._waiter is None and self._listener is None, "a reader is one task's"
        while not self.behind and not self._stream.ended:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    async def follow(self, show: Callable[[int, StreamEvent], bool]) -> None:
        """Hands each event and its number to `show` in the very turn that appends it: no task
        wakes for it. Returns when `show` says False (its client lags) or the stream has ended.
        What `show` raises is raised here; EventsGone as `take` does."""
        assert self._waiter is None and self._listener is None, "a reader is one task's"
        stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def on_more() -> None:
            try:
                if self._show_all(show) and not self._stream.ended:
                    return
                if not stopped.done():
                    stopped.set_result(None)
            except Exception as error:
                if not stopped.done():
                    stopped.set_exception(error)
            self._listener = None

        self._listener = on_more
        try:
            on_more()
            await stopped
        finally:
            self._listener = None
            if stopped.done() and not stopped.cancelled():
                stopped.exception()  # seen, even where this task was cancelled in the same turn

    def _show_all(self, show: Callable[[int, StreamEvent], bool]) -> bool:
        """Whether to go on."""
        for event in self._stream.since(self.next) if self.behind else ():
            self.next += 1
            if not show(self.next - 1, event):
                return False
        return True

    def _on_more(self) -> None:
        if self._listener is not None:
            self._listener()
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
