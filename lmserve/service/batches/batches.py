"""Files of requests, run when nobody waits: begun, looked at, cancelled, gone on with."""

from __future__ import annotations

import asyncio
import logging
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from lmserve.errors import (
    BatchConflict,
    BatchNotFound,
    FileMissing,
    InvalidField,
    Overloaded,
    SetupError,
    StoreError,
)
from lmserve.ids import Ids
from lmserve.service import limits
from lmserve.service.batches.files import Files
from lmserve.service.batches.records import ENDED, BatchRecord
from lmserve.service.batches.run import Run
from lmserve.service.batches.shop import Answerer, Shop
from lmserve.service.metrics import Metrics
from lmserve.settings import Settings

MAX_OPEN = 100  # batches that have not ended
MAX_WINDOW_H = 168
MIN_EXPIRES_S, MAX_EXPIRES_S = 3600, 30 * 86400
KEEP_S = 30 * 86400.0  # batches that have ended
SWEEP_S = 5.0

_ID = re.compile(r"batch_[0-9a-f]{32}")
_WINDOW = re.compile(r"([0-9]{1,3})h")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BatchAsk:
    """A batch to begin."""

    owner: str
    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: Mapping[str, str] | None = None
    output_expires_after_s: int | None = None


class Batches:
    """Lives on the service's loop. `open` once the ids are the server's own."""

    def __init__(
        self,
        settings: Settings,
        ids: Ids,
        metrics: Metrics,
        answerer: Answerer,
        at_leisure: Callable[[], bool],
        *,
        clock: Callable[[], float] = time.time,
    ):
        self.files = Files(settings.batches, ids, clock=clock)
        self.files.in_use = self._reads
        self._max_kept = settings.batches.max_batches
        self._ids = ids
        self._clock = clock
        self._shop = Shop(
            answerer=answerer,
            files=self.files,
            metrics=metrics,
            at_leisure=at_leisure,
            clock=clock,
            max_line_bytes=settings.server.max_body_bytes,
            num_places=settings.batches.batch_concurrency,
            on_end=lambda record: self._runs.pop(record.id, None),
        )
        self._records: dict[str, BatchRecord] = {}
        self._runs: dict[str, Run] = {}
        self._sweeper: asyncio.Task[None] | None = None
        self._own_folder: tempfile.TemporaryDirectory[str] | None = None

    async def open(self, folder: Path | None) -> None:
        """Where the server keeps its data; None: only as long as it lives. Goes on with what an
        earlier one began. Raises SetupError."""
        if folder is None:
            self._own_folder = await asyncio.to_thread(
                tempfile.TemporaryDirectory, prefix="lmserve-files-"
            )
            folder = Path(self._own_folder.name)
        self._shop.folder = folder / "batches"
        try:
            await self.files.open(folder / "files")
            records = await self._shop.disk.do(_read_all, self._shop.folder)
        except StoreError as error:
            raise SetupError(f"{folder} cannot be used: {error.message}") from None
        self._records = {record.id: record for record in records}
        for record in records:
            if record.status not in ENDED:
                self._runs[record.id] = Run(record, self._shop)
        self._sweeper = asyncio.create_task(self._sweep_forever())

    async def close(self) -> None:
        """Stops what runs, for a later server to go on with. Idempotent."""
        if self._sweeper is None:
            return
        self._sweeper.cancel()
        await asyncio.wait({self._sweeper})
        self._sweeper = None
        await asyncio.gather(*[run.close() for run in list(self._runs.values())])
        await self._shop.disk.close()
        await self.files.close()
        if self._own_folder is not None:
            await asyncio.to_thread(self._own_folder.cleanup)

    def get(self, owner: str, id: str) -> BatchRecord:
        """Raises BatchNotFound."""
        record = self._records.get(id)
        if record is None or record.owner != owner:
            raise BatchNotFound(f"there is no batch {id[:70]!r}", param="batch_id")
        return record

    def list(self, owner: str) -> list[BatchRecord]:
        """The newest first."""
        found = [record for record in self._records.values() if record.owner == owner]
        return sorted(found, key=lambda record: (-record.created, record.id))

    async def create(self, ask: BatchAsk) -> BatchRecord:
        """Raises InvalidField, FileMissing, Overloaded, StoreError."""
        hours = self._check(ask)
        if self._sweeper is None or len(self._runs) >= MAX_OPEN:
            raise Overloaded(
                f"{len(self._runs)} batches have not ended: try again later", retry_after_s=60
            )
        now = self._clock()
        record = BatchRecord(
            id=self._ids.new("batch_"),
            owner=ask.owner,
            endpoint=ask.endpoint,
            input_file_id=ask.input_file_id,
            completion_window=ask.completion_window,
            created=now,
            expires=now + hours * 3600,
            metadata=None if ask.metadata is None else dict(ask.metadata),
            output_expires_after_s=ask.output_expires_after_s,
        )
        self._records[record.id] = record  # its file stays, from now on
        try:
            await self._shop.save(record)
        except StoreError:
            del self._records[record.id]
            raise
        if self._sweeper is not None:  # else the next server begins it
            self._runs[record.id] = Run(record, self._shop)
        return record

    async def cancel(self, owner: str, id: str) -> BatchRecord:
        """Raises BatchNotFound, BatchConflict, StoreError."""
        record = self.get(owner, id)
        before = record.status
        if record.outcome is not None or before not in ("validating", "in_progress", "cancelling"):
            raise BatchConflict(f"{id} is {before}: there is nothing to cancel", param="batch_id")
        if before == "cancelling":
            return record
        record.status, record.cancelling = "cancelling", self._clock()
        if (run := self._runs.get(id)) is not None:
            run.stop()
        await self._shop.save(record)
        return record

    async def sweep(self) -> None:
        """Ends what is too late, forgets what is too old."""
        now = self._clock()
        num_kept: Counter[str] = Counter()
        for record in sorted(self._records.values(), key=lambda record: -record.created):
            if record.status in ENDED:
                num_kept[record.owner] += 1
                is_old = (record.ended or 0.0) + KEEP_S <= now
                if is_old or num_kept[record.owner] > self._max_kept:
                    await self._forget(record)
            elif record.expires <= now and (run := self._runs.get(record.id)) is not None:
                run.stop(expired=True)
        await self.files.sweep()

    # --- inner ------------------------------------------------------------------------

    def _check(self, ask: BatchAsk) -> int:
        """Hours that it may take."""
        endpoints = self._shop.answerer.endpoints
        if ask.endpoint not in endpoints:
            raise InvalidField(
                f"endpoint is {ask.endpoint[:64]!r}: it must be one of {', '.join(endpoints)}",
                param="endpoint",
            )
        window = _WINDOW.fullmatch(ask.completion_window)
        hours = int(window[1]) if window else 0
        if not 1 <= hours <= MAX_WINDOW_H:
            raise InvalidField(
                f"completion_window is {ask.completion_window[:20]!r}: it must be 24h, or another "
                f"number of hours from 1h to {MAX_WINDOW_H}h",
                param="completion_window",
            )
        limits.check_metadata(ask.metadata or {})
        check_expires_after(ask.output_expires_after_s, "output_expires_after.seconds")
        try:
            file = self.files.get(ask.owner, ask.input_file_id)
        except FileMissing as error:
            raise FileMissing(error.message, param="input_file_id") from None
        if file.purpose != "batch":
            raise InvalidField(
                f"input_file_id is of a file whose purpose is {file.purpose}: upload it with "
                "purpose batch",
                param="input_file_id",
            )
        return hours

    def _reads(self, file_id: str) -> bool:
        return any(
            record.input_file_id == file_id and record.status not in ENDED
            for record in self._records.values()
        )

    async def _forget(self, record: BatchRecord) -> None:
        try:
            await self._shop.disk.do(_remove, self._shop.folder, record.id)
        except StoreError as error:
            log.warning("an old batch could not be removed: %s", error)
        else:
            self._records.pop(record.id, None)

    async def _sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            await self.sweep()


def check_expires_after(seconds: int | None, param: str) -> None:
    if seconds is not None and not MIN_EXPIRES_S <= seconds <= MAX_EXPIRES_S:
        raise InvalidField(
            f"{param} is {seconds}: it must be from {MIN_EXPIRES_S} to {MAX_EXPIRES_S}",
            param=param,
        )


def _read_all(folder: Path) -> list[BatchRecord]:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    records = []
    for path in folder.glob("batch_*.json"):
        try:
            record = msgspec.json.decode(path.read_bytes(), type=BatchRecord)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            log.warning("%s is not a batch that can be gone on with: %s", path, error)
            continue
        if _ID.fullmatch(record.id) and path.name == f"{record.id}.json":
            records.append(record)
    return records


def _remove(folder: Path, id: str) -> None:
    for suffix in (".output.jsonl", ".errors.jsonl", ".json"):
        (folder / f"{id}{suffix}").unlink(missing_ok=True)
