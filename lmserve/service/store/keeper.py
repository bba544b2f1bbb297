"""The store on its thread, and what it forgets: whoever writes makes room first and last."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Container
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from lmserve.errors import StoreError
from lmserve.service.histogram import Histogram
from lmserve.service.store import answers as store_answers
from lmserve.service.store import forgetting
from lmserve.service.store.sizes import StoreSize, size_of
from lmserve.service.store.store import SessionKey, Store
from lmserve.settings import SessionSettings

T = TypeVar("T")

LOST_PER_SESSION = 10  # reasons kept of forgotten sessions, for each session that may be kept
SWEEP_S = 60.0
RETRY_S = 5.0  # what must be written, and could not be
KEEP_EVENTS_S = 86400.0  # of answers that have ended; their texts stay
MAX_EVENTS_BYTES = 2**30  # compressed, in all
_WRITE_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)

log = logging.getLogger(__name__)


class Keeper:
    """Lives on the service's loop. Sessions that are `busy` (looked at on the store's thread) are
    not forgotten."""

    def __init__(
        self,
        settings: SessionSettings,
        clock: Callable[[], float],
        busy: Container[SessionKey],
        open_store: Callable[[], Store],
    ):
        self.clock = clock
        self._open_store = open_store
        self._settings = settings
        self._busy = busy
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sessions")
        self._store: Store | None = None
        self._writes: set[asyncio.Future[Any]] = set()
        self._sweeper: asyncio.Task[None] | None = None
        self._late: set[Callable[[Store, float], object]] = set()
        self._retrying: asyncio.Task[None] | None = None
        self._warned = False
        self.size = StoreSize()  # counted now and then
        self.write_times = Histogram(_WRITE_SECONDS)
        self.num_failures = 0  # of writes

    @property
    def num_writing(self) -> int:
        """Writes that wait or run."""
        return len(self._writes)

    async def open(self) -> None:
        """Raises SetupError, one line with the remedy."""
        loop = asyncio.get_running_loop()
        self._store = await loop.run_in_executor(self._thread, self._open_store)
        with suppress(StoreError):  # the sweep tells of it
            self.size = await self.run(size_of)
        self._sweeper = asyncio.create_task(self._sweep_forever())

    async def close(self) -> None:
        """Waits for what is being written. Idempotent."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.wait([self._sweeper])
            self._sweeper = None
        if self._retrying is not None:
            self._retrying.cancel()
            await self.write_late()
            self._late.clear()
        while self._writes:
            await asyncio.wait(self._writes)
        if self._store is not None:
            closed = self.run(Store.close)
            self._store = None
            await closed
        self._thread.shutdown(wait=False)

    def run(self, work: Callable[[Store], T]) -> asyncio.Future[T]:
        """Runs on the store's thread, in the order of the calls."""
        loop = asyncio.get_running_loop()
        if self._store is None:
            closed: asyncio.Future[T] = loop.create_future()
            closed.set_exception(StoreError("conversations are not kept: the server is stopping"))
            return closed
        return loop.run_in_executor(self._thread, work, self._store)

    def read(self, work: Callable[[Store], T], key: SessionKey | None = None) -> asyncio.Future[T]:
        """After what is too old was forgotten, unless it is this session, and busy."""
        now, busy = self.clock(), _But(self._busy, key, False)

        def fresh(store: Store) -> T:
            self._expire(store, busy, now)
            return work(store)

        return self.run(fresh)

    def write(self, work: Callable[[Store], T]) -> asyncio.Future[T]:
        """Done whoever waits for it: `close` does."""
        written = self.run(work)
        self._writes.add(written)
        written.add_done_callback(functools.partial(self._on_written, time.monotonic()))
        return written

    def add(self, key: SessionKey, work: Callable[[Store, float], T]) -> asyncio.Future[T]:
        """Writes more to this session, now, and lets others make room for it."""
        now, busy = self.clock(), _But(self._busy, key, True)

        def adding(store: Store) -> T:
            self._expire(store, busy, now)
            added = work(store, now)
            self._make_room(store, busy, now)
            return added

        return self.write(adding)

    def add_later(self, work: Callable[[Store, float], object]) -> None:
        """Now and then, until it is written: the disk may come back. `work` may be done twice."""
        self._late.add(work)
        if self._retrying is None or self._retrying.done():
            self._retrying = asyncio.create_task(self._retry())

    async def write_late(self) -> None:
        """What waits to be written, as far as it can be."""
        for work in tuple(self._late):
            with suppress(StoreError):
                await self.run(functools.partial(_work_at, work, self.clock()))
                self._late.discard(work)

    async def _retry(self) -> None:
        while self._late:
            await asyncio.sleep(RETRY_S)
            await self.write_late()

    async def sweep(self) -> None:
        """Forgets what is too old. Raises StoreError."""
        most = LOST_PER_SESSION * self._settings.max_sessions
        before = self.clock() - KEEP_EVENTS_S

        def forget(store: Store) -> StoreSize:
            forgetting.drop_lost(store, most)
            store_answers.expire_events(store, before, MAX_EVENTS_BYTES)
            return size_of(store)

        self.size = await self.read(forget)

    async def _sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            try:
                await self.sweep()
            except StoreError as error:
                log.warning("old sessions could not be forgotten: %s", error)

    def _on_written(self, began_s: float, written: asyncio.Future[Any]) -> None:
        self._writes.discard(written)
        self.write_times.add(time.monotonic() - began_s)
        error = written.exception()
        self.num_failures += isinstance(error, StoreError)
        if isinstance(error, StoreError):
            log.log(
                logging.DEBUG if self._warned else logging.ERROR,
                "a conversation was not kept: %s (told once, until one is kept again)",
                error,
            )
        self._warned = isinstance(error, StoreError)

    def _expire(self, store: Store, busy: Container[SessionKey], now: float) -> None:
        ttl_s = self._settings.session_ttl_s
        forgetting.expire(store, now - ttl_s, f"it was not used for {ttl_s:g} s", busy, now)

    def _make_room(self, store: Store, busy: Container[SessionKey], now: float) -> None:
        num_sessions, num_tokens = self._settings.max_sessions, self._settings.max_session_tokens
        reason = "it made room for others, which were used later"
        try:
            forgetting.make_room(store, num_sessions, num_tokens, reason, busy, now)
        except StoreError as error:  # what was to be kept is
            log.warning("no session could make room: %s", error)


@dataclass(frozen=True, slots=True)
class _But(Container[SessionKey]):
    """The busy ones, of which `key` is said to be one or not."""

    busy: Container[SessionKey]
    key: SessionKey | None
    is_busy: bool

    def __contains__(self, other: object) -> bool:
        return self.is_busy if other == self.key else other in self.busy


def _work_at(work: Callable[[Store, float], T], now: float, store: Store) -> T:
    return work(store, now)
