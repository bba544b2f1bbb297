"""Answers of plain routes that outlive a connection: read again by whoever was cut off, joined by
whoever asks the same again with the same idempotency key.

The service makes them, in tasks of its own; handlers read their streams. A whole answer is a
stream of one event.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import dataclass, field

from lmserve.errors import EngineUnavailable, KeyReused, LmserveError
from lmserve.ids import Ids
from lmserve.service.generation import Generation
from lmserve.service.streams.stream import Reader, Stream, StreamEvent
from lmserve.service.streams.streams import Streams

Events = Sequence[StreamEvent]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Telling:
    """An answer in its events. `follow`, if any, hands on what would be the next of them in the
    turn that brings them; it returns when `events` has more to say."""

    events: AsyncGenerator[Events, None]
    follow: Callable[[Callable[[Events], bool]], Awaitable[None]] | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one answer is made, and told."""

    start: Callable[[], Awaitable[Sequence[Generation]]]
    tell: Callable[[Sequence[Generation]], Telling]
    tell_failure: Callable[[LmserveError], Events]  # after the first event


@dataclass(frozen=True, slots=True)
class Key:
    """A client's name of one request."""

    owner: str
    route: str
    text: str
    digest: bytes = field(compare=False)  # of the request


class Making:
    """One answer, being made or made. A waiting handler is a reader of its stream: without any,
    it is stopped after the grace."""

    def __init__(
        self,
        id: str,
        owner: str,
        recipe: Recipe,
        streams: Streams,
        key: Key | None,
        on_forgotten: Callable[[Making], None],
    ):
        self.key = key
        self.good = True  # neither failed nor stopped, so far
        self.stream: Stream = streams.open(
            id, owner, self.stop, on_forgotten=lambda: on_forgotten(self)
        )
        self._tell_failure = recipe.tell_failure
        self._streams = streams
        self._generations: Sequence[Generation] = ()
        self._started = asyncio.Event()  # the request is taken or refused
        self._failure: LmserveError | None = None  # that came before the first event
        self._is_read = False  # before that, too
        self.task = asyncio.create_task(self._make(recipe))  # which alone keeps its request
        self.task.add_done_callback(self._on_done)

    async def started(self) -> None:
        """Returns when its request is no longer needed."""
        with self._waiting():
            await self._started.wait()

    async def begun(self, within_s: float | None = None) -> None:
        """Returns when its first event is there. Raises what failed before that. Or returns
        after that time: whatever fails then is told in events."""
        if not self.stream.next:
            with self._waiting() as reader:
                try:
                    async with asyncio.timeout(within_s):
                        await reader.wait()
                except TimeoutError:
                    self._is_read = True
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Its readers are told `abort`."""
        self.good = False
        for generation in self._generations:
            generation.abort()
        if not self._started.is_set():
            self.task.cancel()

    @contextmanager
    def _waiting(self) -> Iterator[Reader]:
        try:
            with self.stream.reading(self.stream.next - 1) as reader:
                yield reader
        except asyncio.CancelledError:  # the client left
            if self.key is None:
                self.stop()  # nobody knows its stream's id yet
            raise

    async def _make(self, recipe: Recipe) -> None:
        try:
            self._generations = await recipe.start()
            self._started.set()
            with ExitStack() as leases:
                for generation in self._generations:
                    leases.enter_context(generation.lease())
                await self._tell(recipe.tell(self._generations))
        except Exception as error:
            self._fail(error)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        """Also where it was cancelled before it ran at all."""
        if task.cancelled():
            self._fail(EngineUnavailable("the answer was stopped before its end: ask again"))
        self._started.set()
        self._generations = ()
        self._streams.end(self.stream)
        if self._failure is not None:
            self._streams.forget(self.stream)

    async def _tell(self, telling: Telling) -> None:
        async with aclosing(telling.events) as told:
            async for events in told:
                self._append(events)
                if telling.follow is not None:
                    await telling.follow(self._append)

    def _append(self, events: Events) -> bool:
        for event in events:
            self.stream.append(event)
        return True

    def _fail(self, error: Exception) -> None:
        self.good = False
        if not isinstance(error, LmserveError):
            logger.error("the answer of %s failed", self.stream.id, exc_info=error)
            error = LmserveError(f"internal error; the log has it as {self.stream.id}")
        if self.stream.next or self._is_read:
            self._append(self._tell_failure(error))
        else:
            self._failure = error


class Resumable:
    """All of them; those with a key are found by it as long as their streams are kept. What
    failed or was stopped is not: the same request runs anew. `close` before the streams."""

    def __init__(self, streams: Streams, ids: Ids):
        self._streams = streams
        self._ids = ids
        self._keyed: dict[Key, Making] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def make(self, owner: str, recipe: Recipe, key: Key | None = None) -> Making:
        """A new one or, where one came with this key, that. Raises KeyReused where that was for
        another request."""
        made = self._keyed.get(key) if key is not None else None
        if made is None or not made.good:
            return self._make(owner, recipe, key)
        assert made.key is not None and key is not None
        if made.key.digest != key.digest:
            raise KeyReused(
                "this Idempotency-Key came with another request: give each request its own",
                param="Idempotency-Key",
            )
        return made

    async def close(self) -> None:
        """Stops all that run. Idempotent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _make(self, owner: str, recipe: Recipe, key: Key | None) -> Making:
        id = self._ids.new("strm_")
        making = Making(id, owner, recipe, self._streams, key, self._on_forgotten)
        self._tasks.add(making.task)
        making.task.add_done_callback(self._tasks.discard)
        if key is not None:
            self._keyed[key] = making
        return making

    def _on_forgotten(self, making: Making) -> None:
        if making.key is not None and self._keyed.get(making.key) is making:
            del self._keyed[making.key]
