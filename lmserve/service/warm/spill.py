"""KV of idle conversations on disk and back. A file that cannot be written or read costs time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from lmserve.bridge.handle import EngineHandle
from lmserve.errors import EngineError, EngineUnavailable
from lmserve.messages import EngineInfo
from lmserve.service.metrics import Metrics
from lmserve.service.store.rows import SessionKey
from lmserve.service.warm.kv_files import KvFiles

PAUSE_S = 60.0  # after a write that failed
SAVE_WITHIN_S = 30.0
RESTORE_WITHIN_S = 10.0  # a turn waits for it

T = TypeVar("T")

log = logging.getLogger(__name__)


class Spill:
    """Lives on the service's loop. Never raises: it logs. Closed, it does nothing."""

    def __init__(
        self,
        handle: EngineHandle,
        metrics: Metrics,
        max_bytes: int,
        clock: Callable[[], float],
    ):
        self._handle = handle
        self._metrics = metrics
        self._max_bytes = max_bytes
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kv-files")
        self._files: KvFiles | None = None
        self._paused_until = float("-inf")
        self._warned = False

    async def open(self, folder: Path) -> None:
        files = KvFiles(folder, self._max_bytes)
        try:
            await self._do(files.open)
        except OSError as error:
            log.warning("KV of idle conversations is not kept in %s: %s", folder, error)
            return
        self._files = files
        self._count()

    def close(self) -> None:
        """Idempotent."""
        self._files = None
        self._thread.shutdown(wait=False)

    def has(self, key: SessionKey) -> bool:
        return self._files is not None and self._files.has(key)

    def names(self) -> Collection[str]:
        return () if self._files is None else self._files.names()

    async def save(self, key: SessionKey, packed: bytes, namespace: int) -> bool:
        """Says whether the session's file has the KV of these tokens now."""
        files, info = self._files, self._handle.info
        if files is None or info is None or self._clock() < self._paused_until:
            return False
        num_bytes = num_kv_bytes(info, len(packed) // 4)
        try:
            if not await self._do(files.make_room, key, num_bytes):
                return False
            path = str(files.path(key))
            saved = await self._handle.control(
                "save", SAVE_WITHIN_S, token_ids=packed, path=path, namespace=namespace
            )
            if not saved["num_tokens"]:
                return False  # it was evicted
            await self._do(files.written, key)
        except EngineUnavailable as error:
            log.debug("the KV of an idle conversation was not written: %s", error)
            return False
        except (EngineError, OSError) as error:
            self._pause(error)
            return False
        self._warned = False
        self._metrics.kv_saves += 1
        self._count()
        return True

    async def restore(self, key: SessionKey, packed: bytes, namespace: int) -> int:
        """Reads what the session's file has of these tokens' KV. Returns of how many the engine
        has it then."""
        files = self._files
        if files is None:
            return 0
        path = str(files.path(key))
        try:
            restored = await self._handle.control(
                "restore", RESTORE_WITHIN_S, token_ids=packed, path=path, namespace=namespace
            )
            await self._do(files.used, key)
        except EngineUnavailable as error:
            self._metrics.kv_restores["late"] += 1
            log.info("the KV of a conversation is run anew: %s", error)
            return 0
        except (EngineError, OSError) as error:
            self._metrics.kv_restores["refused"] += 1
            log.warning("the KV of a conversation is run anew, its file goes: %s", error)
            await self.remove(key)
            return 0
        self._metrics.kv_restores["hit" if restored["num_tokens"] else "miss"] += 1
        num_known: int = restored["num_known"]
        return num_known

    async def link(self, key: SessionKey, new_key: SessionKey) -> None:
        if self._files is not None:
            await self._try(self._files.link, key, new_key)

    async def remove(self, key: SessionKey) -> None:
        if self._files is not None:
            await self._try(self._files.remove, key)

    async def remove_others(self, names: Collection[str], keys: Collection[SessionKey]) -> None:
        """Of the files of these names, those that are none of these sessions'."""
        if self._files is not None:
            await self._try(self._files.remove_others, names, keys)

    async def _try(self, work: Callable[..., object], *args: object) -> None:
        try:
            await self._do(work, *args)
        except OSError as error:
            log.warning("a file with the KV of a conversation stays as it is: %s", error)
        self._count()

    def _do(self, work: Callable[..., T], *args: object) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._thread, work, *args)

    def _pause(self, error: Exception) -> None:
        self._paused_until = self._clock() + PAUSE_S
        level = logging.DEBUG if self._warned else logging.WARNING
        self._warned = True
        log.log(level, "KV of idle conversations is not written to disk for a while: %s", error)

    def _count(self) -> None:
        self._metrics.kv_bytes_spilled = 0 if self._files is None else self._files.num_bytes


def num_kv_bytes(info: EngineInfo, num_tokens: int) -> int:
    """What the KV of so many tokens takes."""
    return num_tokens * info.kv_cache_bytes // max(1, info.num_blocks * info.block_size)
