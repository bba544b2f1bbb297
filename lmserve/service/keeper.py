"""The store on its thread, and what it forgets: whoever writes makes room first and last."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from lmserve.errors import StoreError
from lmserve.service.store import SessionKey, Store
from lmserve.settings import SessionSettings

T = TypeVar("T")

LOST_PER_SESSION = 10  # reasons kept of forgotten sessions, for each session that may be kept
SWEEP_S = 60.0

log = logging.getLogger(__name__)


class Keeper:
    """Lives on the service's loop. Sessions that are `busy` are not forgotten."""

    def __init__(
        self,
        settings: SessionSettings,
        clock: Callable[[], float],
        busy: Callable[[], frozenset[SessionKey]],
    ):
        self.clock = clock
        self._settings = settings
        self._busy = busy
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sessions")
        self._store: Store | None = None
        self._writes: set[asyncio.Future[Any]] = set()
        self._sweeper: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Raises SetupError, one line with the remedy."""
        loop = asyncio.get_running_loop()
        self._store = await loop.run_in_executor(self._thread, Store, self._settings.data_dir)
        self._sweeper = asyncio.create_task(self._sweep_forever())

    async def close(self) -> None:
        """Waits for what is being written. Idempotent."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.wait([self._sweeper])
            self._sweeper = None
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
        now, busy = self.clock(), frozenset(other for other in self._busy() if other != key)

        def fresh(store: Store) -> T:
            self._expire(store, busy, now)
            return work(store)

        return self.run(fresh)

    def write(self, work: Callable[[Store], T]) -> asyncio.Future[T]:
        """Done whoever waits for it: `close` does."""
        written = self.run(work)
        self._writes.add(written)
        written.add_done_callback(self._on_written)
        return written

    def add(self, key: SessionKey, work: Callable[[Store, float], T]) -> asyncio.Future[T]:
        """Writes more to this session, now, and lets others make room for it."""
        now, busy = self.clock(), self._busy() | {key}

        def adding(store: Store) -> T:
            self._expire(store, busy, now)
            added = work(store, now)
            self._make_room(store, busy, now)
            return added

        return self.write(adding)

    async def sweep(self) -> None:
        """Forgets what is too old. Raises StoreError."""
        most = LOST_PER_SESSION * self._settings.max_sessions
        await self.read(lambda store: store.drop_lost(most))

    async def _sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            try:
                await self.sweep()
            except StoreError as error:
                log.warning("old sessions could not be forgotten: %s", error)

    def _on_written(self, written: asyncio.Future[Any]) -> None:
        self._writes.discard(written)
        error = written.exception()
        if isinstance(error, StoreError):
            log.error("a conversation was not kept: %s", error)

    def _expire(self, store: Store, busy: frozenset[SessionKey], now: float) -> None:
        ttl_s = self._settings.session_ttl_s
        store.expire(now - ttl_s, f"it was not used for {ttl_s:g} s", busy, now)

    def _make_room(self, store: Store, busy: frozenset[SessionKey], now: float) -> None:
        num_sessions, num_tokens = self._settings.max_sessions, self._settings.max_session_tokens
        reason = "it made room for others, which were used later"
        try:
            store.make_room(num_sessions, num_tokens, reason, busy, now)
        except StoreError as error:  # what was to be kept is
            log.warning("no session could make room: %s", error)
