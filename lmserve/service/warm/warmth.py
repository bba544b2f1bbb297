"""What keeps a conversation warm: its KV is pinned in the engine, then on disk, then forgotten.

    turn ─► pinned ── idle for `spill_after_s` ─► on disk too ── `pin_s`, or no room ─► on disk only
               ▲                                                                            │
               └────────── the next turn, also of a later server or engine: restored ◄──────┘

Forks share the blocks of what they have in common, copied on write, and each has a pin of its own.
All pins take at most `pin_share` of the cache (`pins` says who makes room). Losing any of it costs
time, never an answer: nothing here raises.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmserve.bridge.handle import EngineHandle
from lmserve.errors import EngineError, EngineUnavailable, StoreError
from lmserve.messages import EngineInfo, pack_ids
from lmserve.service.metrics import Metrics
from lmserve.service.store.rows import SessionKey
from lmserve.service.warm.kv_files import name_of
from lmserve.service.warm.pins import to_let_go
from lmserve.service.warm.spill import PAUSE_S, Spill
from lmserve.settings import WarmSettings

WRITE_ALL_WITHIN_S = 10.0
ORPHANS_EVERY_S = 3600.0

Keys = Callable[[], Awaitable[Collection[SessionKey]]]

log = logging.getLogger(__name__)


def shared(owner: str, cache_salt: str) -> int:
    return 0


@dataclass(slots=True, eq=False)
class Warm:
    """A session as its last turn left it, pinned."""

    key: SessionKey
    packed: bytes  # its tokens
    cache_salt: str  # of that turn
    engine: EngineInfo  # that holds them; the next one does not
    used_s: float
    spill_s: float  # when its file is due; infinite where it has one or is to have none
    unpin_s: float
    num_blocks: int = 0  # pinned, once the engine has said so

    @property
    def owner(self) -> str:
        return self.key.owner


class Warmth:
    """Lives on the service's loop."""

    def __init__(
        self,
        handle: EngineHandle,
        settings: WarmSettings,
        metrics: Metrics,
        *,
        namespace_of: Callable[[str, str], int] = shared,
        clock: Callable[[], float] = time.monotonic,
    ):
        """`namespace_of`: where in the engine's cache an owner's KV of this salt is."""
        self._namespace_of = namespace_of
        self._handle = handle
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._spill = Spill(handle, metrics, settings.spill_max_bytes, clock)
        self._warm: dict[SessionKey, Warm] = {}
        self._restores: dict[SessionKey, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._poked = asyncio.Event()
        self._closed = False
        #: Called with the session before each of its turns and at its end, and after turns that
        #: were kept.
        self.before_turn: Callable[[SessionKey], object] = lambda _: None
        self.after_turn: Callable[[SessionKey], object] = lambda _: None

    async def open(self, folder: Path | None, keys: Keys) -> None:
        """`folder`: where the server keeps its data; None: only in memory. `keys` tells of all
        sessions there are: files of others go."""
        if folder is not None and self._settings.spill and self._settings.spill_max_bytes:
            await self._spill.open(folder / "kv")
            self._start(self._remove_orphans_forever(keys))
        self._start(self._sweep_forever())

    async def close(self) -> None:
        """Writes what is not on disk yet; call it before the engine is closed. Idempotent."""
        if self._closed:
            return
        self._closed = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self.write_all()
        self._spill.close()

    async def write_all(self) -> None:
        """What is not on disk yet, the newest first, before the engine is stopped. In bounded
        time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(WRITE_ALL_WITHIN_S):
                for warm in sorted(self._warm.values(), key=lambda warm: -warm.used_s):
                    await self._write(warm)

    # --- told by those who run turns --------------------------------------------------

    async def ready(self, key: SessionKey, token_ids: Sequence[int], cache_salt: str = "") -> None:
        """Before a turn that begins with these tokens: reads their KV from disk where the engine
        does not have it. Returns in bounded time."""
        self.before_turn(key)
        await self.restore(key, token_ids, cache_salt)

    async def restore(
        self, key: SessionKey, token_ids: Sequence[int], cache_salt: str = ""
    ) -> None:
        """As `ready`, when it is not yet the turn. A caller cancelled meanwhile stops nothing."""
        info = self._handle.info
        if self._closed or info is None or not token_ids:
            return
        if self._pinned(key) or not self._spill.has(key):
            return
        task = self._restores.get(key)
        if task is None:
            work = self._restore(key, info, pack_ids(token_ids), cache_salt)
            task = self._restores[key] = asyncio.create_task(work)
            task.add_done_callback(lambda _: self._restores.pop(key))
            self._own(task)
        await asyncio.wait({task})

    def salt_of(self, key: SessionKey) -> str:
        """Of its last turn, while it is warm."""
        warm = self._warm.get(key)
        return "" if warm is None else warm.cache_salt

    def used(
        self,
        key: SessionKey,
        token_ids: Sequence[int],
        *,
        spill: bool = True,
        cache_salt: str = "",
    ) -> None:
        """After a turn that ran these tokens. `spill` False: it never goes to disk."""
        info = self._handle.info
        if info is not None and not self._closed:
            self._pin(key, info, pack_ids(token_ids), cache_salt, spill=spill)
        self.after_turn(key)

    def forked(self, key: SessionKey, new_key: SessionKey) -> None:
        """The other session begins as this one."""
        if not self._closed:
            self._start(self._spill.link(key, new_key))

    def gone(self, key: SessionKey) -> None:
        """There is no such session any more."""
        self.before_turn(key)
        if self._closed:
            return
        if self._warm.pop(key, None) is not None:
            self._count()
            self._start(self._unpin(key))
        if self._spill.has(key):
            self._start(self._spill.remove(key))

    # --- pins -------------------------------------------------------------------------

    def _pinned(self, key: SessionKey) -> bool:
        warm = self._warm.get(key)
        return warm is not None and warm.engine is self._handle.info

    def _pin(
        self, key: SessionKey, info: EngineInfo, packed: bytes, cache_salt: str, *, spill: bool
    ) -> None:
        now, settings = self._clock(), self._settings
        warm = Warm(
            key,
            packed,
            cache_salt,
            info,
            used_s=now,
            spill_s=now + settings.spill_after_s if spill else float("inf"),
            unpin_s=now + settings.pin_s,
        )
        older = self._warm.pop(key, None)
        if older is not None and older.engine is info:
            warm.num_blocks = older.num_blocks
        self._warm[key] = warm
        self._count()
        self._start(self._ask_pin(warm))
        self._poked.set()

    async def _ask_pin(self, warm: Warm) -> None:
        """It takes the place of the session's older pin."""
        namespace = self._namespace_of(warm.owner, warm.cache_salt)
        pinned = await self._ask(
            "pin", key=name_of(warm.key), token_ids=warm.packed, namespace=namespace
        )
        if self._warm.get(warm.key) is not warm:
            return  # there is a newer one, or none
        if pinned is None:
            del self._warm[warm.key]
            return
        warm.num_blocks = pinned["num_blocks"]
        self._make_room(pinned["pinned_blocks"], int(warm.engine.num_blocks))

    def _make_room(self, num_pinned: int, num_blocks: int) -> None:
        """`num_pinned` counts what conversations share once."""
        now = self._clock()
        going = [warm for warm in self._warm.values() if warm.unpin_s <= now]
        staying = [warm for warm in self._warm.values() if warm.unpin_s > now]
        excess = num_pinned - int(self._settings.pin_share * num_blocks)
        excess -= sum(warm.num_blocks for warm in going)
        for warm in to_let_go(staying, excess):
            warm.unpin_s = now
            self._poked.set()

    async def _unpin(self, key: SessionKey) -> None:
        await self._ask("unpin", key=name_of(key))

    async def _ask(self, verb: str, **args: Any) -> dict[str, Any] | None:
        try:
            answer: dict[str, Any] = await self._handle.control(verb, **args)
        except (EngineUnavailable, EngineError) as error:
            log.debug("the engine did not %s a conversation: %s", verb, error)
            return None
        return answer

    # --- as time passes ---------------------------------------------------------------

    async def sweep(self) -> None:
        """Writes what is idle, then lets go of what is old, that unused longest first."""
        now = self._clock()
        due = [warm for warm in self._warm.values() if min(warm.spill_s, warm.unpin_s) <= now]
        for warm in sorted(due, key=lambda warm: warm.used_s):
            await self._write(warm)
            if self._warm.get(warm.key) is not warm:
                continue  # it was used, or deleted, meanwhile
            if warm.engine is not self._handle.info:
                del self._warm[warm.key]  # nothing of it is left
            elif warm.unpin_s <= now:
                del self._warm[warm.key]
                await self._unpin(warm.key)
        self._count()

    async def _write(self, warm: Warm) -> None:
        """Once a turn."""
        if warm.spill_s == float("inf") or not self._pinned(warm.key):
            return
        namespace = self._namespace_of(warm.owner, warm.cache_salt)
        saved = await self._spill.save(warm.key, warm.packed, namespace)
        warm.spill_s = float("inf") if saved else self._clock() + PAUSE_S
        if saved and warm.key not in self._warm:  # deleted meanwhile
            await self._spill.remove(warm.key)

    async def _restore(
        self, key: SessionKey, info: EngineInfo, packed: bytes, cache_salt: str
    ) -> None:
        namespace = self._namespace_of(key.owner, cache_salt)
        num_known = await self._spill.restore(key, packed, namespace)
        if num_known and key not in self._warm and self._handle.info is info:
            self._pin(
                key, info, packed[: 4 * num_known], cache_salt, spill=False
            )  # it has its file

    async def _sweep_forever(self) -> None:
        while True:
            due_s = min(
                (min(warm.spill_s, warm.unpin_s) for warm in self._warm.values()), default=None
            )
            with suppress(TimeoutError):
                async with asyncio.timeout(due_s and max(0.0, due_s - self._clock())):
                    await self._poked.wait()
            self._poked.clear()
            await self.sweep()

    async def _remove_orphans_forever(self, keys: Keys) -> None:
        while True:
            names = self._spill.names()  # first: a session that begins meanwhile is none of these
            try:
                await self._spill.remove_others(names, [*await keys(), *self._warm])
            except StoreError as error:
                log.debug("files of forgotten conversations stay for now: %s", error)
            await asyncio.sleep(ORPHANS_EVERY_S)

    def _count(self) -> None:
        info = self._handle.info
        pinned = (len(warm.packed) // 4 for warm in self._warm.values() if warm.engine is info)
        self._metrics.kv_tokens_pinned = sum(pinned)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self._own(asyncio.create_task(work))

    def _own(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
