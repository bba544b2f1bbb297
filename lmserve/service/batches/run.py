"""One batch, from its file to its results.

    validating ─► in_progress ─► finalizing ─► completed
        │  └─► failed    │ cancelling ─► cancelled
        └────────────────┴─ (too late) ─► expired

A line counts once its result is on disk. A later server reads the results and goes on with the
lines that have none.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from array import array
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from msgspec.structs import replace

from lmserve.errors import (
    EngineDied,
    EngineUnavailable,
    FilesFull,
    LmserveError,
    Overloaded,
    StoreError,
    TextTooSlow,
)
from lmserve.logs import REQUEST_ID
from lmserve.service.batches.lines import Line, Lines
from lmserve.service.batches.records import BatchRecord, FileRecord, LineError, Outcome
from lmserve.service.batches.results import LineResult, Results
from lmserve.service.batches.shop import Shop

WRITE_EVERY_S = 0.25
DISK_PAUSE_S = 5.0  # after what could not be written
FIRST_PAUSE_S, MAX_PAUSE_S = 0.1, 10.0  # before a line is tried again
MAX_FAULTS = 3  # of the same line: the engine died while it ran it, or its text took too long
EXPIRED_AT_ONCE = 500  # lines told as expired in one write

T = TypeVar("T")

log = logging.getLogger(__name__)


class Run:
    """Begins at once. Its batch's record is saved before it is."""

    def __init__(self, record: BatchRecord, shop: Shop):
        self.record = record
        self._shop = shop
        self._input = Lines(
            shop.files.path(record.input_file_id), record.endpoint, shop.max_line_bytes
        )
        self._results = Results(record, shop.folder, shop.disk, shop.files)
        self._expires = False
        self._lines: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        own = contextvars.Context()  # it is no part of the request that brought it
        own.run(REQUEST_ID.set, record.id)
        self._task = asyncio.create_task(self._run(), context=own)
        self._task.add_done_callback(lambda _: shop.on_end(record))

    def stop(self, *, expired: bool = False) -> None:
        """It is cancelled, as its record says, or too late: it ends with what it has."""
        self._expires = self._expires or expired
        if self._lines is not None:
            self._lines.cancel()

    async def close(self) -> None:
        """A later server goes on with it."""
        self._task.cancel()
        await asyncio.wait({self._task})

    # --- its course -------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            await self._patiently(self._results.open)
            if self.record.outcome is None:
                pending = await self._pending()
                if pending is not None:
                    await self._work(pending)
                    await self._settle()
            await self._end()
        except Exception:
            log.exception("batch %s stands still until a restart", self.record.id)

    async def _pending(self) -> array[int] | None:
        """Where the lines begin that are still to be run; None: the batch failed."""
        record = self.record
        done = await self._patiently(self._results.read)
        if not self._shop.files.has(record.input_file_id):
            await self._fail([LineError(code="file_missing", message="the input file is gone")])
            return None
        scan = await self._patiently(lambda: self._shop.disk.do(self._input.scan, done))
        if record.status == "validating":
            if scan.errors:
                await self._fail(scan.errors)
                return None
            record.status, record.in_progress = "in_progress", self._shop.clock()
        record.num_lines = scan.num_lines
        await self._save()
        return scan.pending

    async def _fail(self, errors: list[LineError]) -> None:
        self._name_files()
        self.record.errors, self.record.outcome = errors, "failed"
        await self._save()

    async def _work(self, pending: array[int]) -> None:
        """Runs these lines, until all are or it is stopped."""
        writer = asyncio.create_task(self._write_forever())
        self._lines = asyncio.create_task(self._run_lines(pending))
        if self._stopped:
            self._lines.cancel()
        try:
            await asyncio.wait({self._lines})
        finally:  # reached too where the server ends
            self._lines.cancel()
            await asyncio.wait({self._lines})
            writer.cancel()
            await asyncio.wait({writer})
            with suppress(StoreError, FilesFull):
                await self._results.write()
        await self._patiently(self._results.write)
        if not self._lines.cancelled():
            self._lines.result()

    async def _settle(self) -> None:
        record, outcome = self.record, self._outcome()
        if outcome == "expired":
            await self._tell_expired()
        if outcome != "cancelled":
            record.status = "finalizing"
        record.finalizing = self._shop.clock()
        self._name_files()
        record.outcome = outcome
        await self._save()

    async def _end(self) -> None:
        """Nobody hears of it before it is on disk: a later server says the same."""
        record, outcome = self.record, self.record.outcome
        assert outcome is not None
        await self._adopt(record.output_file_id, "output")
        await self._adopt(record.error_file_id, "errors")
        ended = replace(record, status=outcome, ended=self._shop.clock())
        await self._patiently(lambda: self._shop.save(ended))
        record.status, record.ended = ended.status, ended.ended

    def _outcome(self) -> Outcome:
        record = self.record
        if record.status == "cancelling":
            return "cancelled"
        num_settled = record.num_completed + record.num_failed
        return "completed" if num_settled == record.num_lines else "expired"

    async def _tell_expired(self) -> None:
        """Of each line that has no result yet."""
        done = await self._patiently(self._results.done)
        scan = await self._patiently(lambda: self._shop.disk.do(self._input.scan, done))
        for first in range(0, len(scan.pending), EXPIRED_AT_ONCE):
            for start in scan.pending[first : first + EXPIRED_AT_ONCE]:
                line = await self._read(start)
                self._results.add(LineResult.expired(line.custom_id))
            await self._patiently(self._results.write)

    def _name_files(self) -> None:
        record, files = self.record, self._shop.files
        if self._results.answers.num_bytes:
            record.output_file_id = files.new_id()
        if self._results.failures.num_bytes:
            record.error_file_id = files.new_id()

    async def _adopt(self, id: str | None, kind: str) -> None:
        if id is None:
            return
        record, files = self.record, self._shop.files
        source = self._shop.folder / f"{record.id}.{kind}.jsonl"
        lasts_s = record.output_expires_after_s or self._shop.keep_s
        now = self._shop.clock()

        async def adopt() -> None:
            num_bytes = await self._shop.disk.do(_size, source, files.path(id))
            file = FileRecord(
                id=id,
                owner=record.owner,
                filename=f"{record.id}_{kind}.jsonl",
                purpose="batch_output",
                num_bytes=num_bytes,
                created=now,
                expires=now + lasts_s,
            )
            await files.adopt(file, source)

        await self._patiently(adopt)

    # --- lines ------------------------------------------------------------------------

    async def _run_lines(self, pending: array[int]) -> None:
        async with asyncio.TaskGroup() as tasks:
            for start in pending:
                await self._writable.wait()
                await self._shop.take_place()
                task = tasks.create_task(self._run_line(start))
                task.add_done_callback(lambda _: self._shop.give_place())

    async def _run_line(self, start: int) -> None:
        running = self._shop.metrics.batch_lines_running
        running[self.record.endpoint] += 1
        try:
            line = await self._read(start)
            status, body = await self._answer(bytes(line.body))
        finally:
            running[self.record.endpoint] -= 1
        self._results.add(LineResult.of(line.custom_id, status, body))
        self._shop.metrics.batch_line_ended(succeeded=status < 400)

    async def _answer(self, body: bytes) -> tuple[int, bytes]:
        """Tried again while the server has no room or no engine, and a few times where it may be
        the line's own fault."""
        record, answerer = self.record, self._shop.answerer
        pause_s, num_faults = FIRST_PAUSE_S, 0
        while True:
            try:
                return 200, await answerer.answer(record.owner, record.endpoint, body)
            except (EngineDied, TextTooSlow) as error:
                num_faults += 1
                if num_faults == MAX_FAULTS:
                    return error.status, answerer.failure(error)
            except (Overloaded, EngineUnavailable):
                pass
            except LmserveError as error:
                return error.status, answerer.failure(error)
            except Exception:
                log.exception("a line of batch %s failed", record.id)
                bug = LmserveError("internal error; the log has it")
                return bug.status, answerer.failure(bug)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, MAX_PAUSE_S)

    async def _read(self, start: int) -> Line:
        return await self._patiently(lambda: self._shop.disk.do(self._input.read, start))

    # --- the disk ---------------------------------------------------------------------

    async def _write_forever(self) -> None:
        """No line begins while none can be written."""
        while True:
            await self._results.ended.wait()
            await asyncio.sleep(WRITE_EVERY_S)
            try:
                await self._results.write()
            except (StoreError, FilesFull) as error:
                self._writable.clear()
                log.warning("batch %s waits: %s", self.record.id, error)
                await asyncio.sleep(DISK_PAUSE_S)
                self._results.ended.set()
            else:
                self._writable.set()

    async def _save(self) -> None:
        await self._patiently(lambda: self._shop.save(self.record))

    async def _patiently(self, work: Callable[[], Awaitable[T]]) -> T:
        """A disk that is full now may have room later."""
        while True:
            try:
                return await work()
            except (StoreError, FilesFull) as error:
                log.warning("batch %s waits: %s", self.record.id, error)
                await asyncio.sleep(DISK_PAUSE_S)

    @property
    def _stopped(self) -> bool:
        return self._expires or self.record.status == "cancelling"


def _size(source: Path, kept: Path) -> int:
    """Of the results, which may have been moved before."""
    return (source if source.exists() else kept).stat().st_size
