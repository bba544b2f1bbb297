"""Files that clients upload, and those that batches write: kept until they expire or are deleted.

Their names are only told back: on disk a file is called by its id.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

from lmserve.errors import (
    BatchConflict,
    BodyTooLarge,
    FileMissing,
    FilesFull,
    Overloaded,
    StoreError,
)
from lmserve.ids import Ids
from lmserve.service.batches.disk import Disk
from lmserve.service.batches.records import FileRecord
from lmserve.service.batches.shelf import Shelf
from lmserve.settings import BatchSettings

MAX_FILES = 10_000
MAX_UPLOADS = 64  # at once
KEEP_S = 30 * 86400.0  # those of batches, where nothing else is asked for
WRITE_BYTES = READ_BYTES = 256 * 1024

log = logging.getLogger(__name__)


class Files:
    """Lives on the service's loop."""

    def __init__(
        self, settings: BatchSettings, ids: Ids, *, clock: Callable[[], float] = time.time
    ):
        self.clock = clock
        self._settings = settings
        self._ids = ids
        self._disk = Disk("files")
        self._shelf = Shelf(Path())
        self._records: dict[str, FileRecord] = {}
        self._keeping: set[asyncio.Task[FileRecord]] = set()
        self._num_uploads = 0
        self.num_bytes = 0  # kept, being written or uploaded
        #: Says whether a batch reads this file.
        self.in_use: Callable[[str], bool] = lambda _: False

    async def open(self, folder: Path) -> None:
        """Raises StoreError."""
        self._shelf = Shelf(folder)
        for record in await self._disk.do(self._shelf.open):
            self._add(record)

    async def close(self) -> None:
        if self._keeping:
            await asyncio.wait(self._keeping)
        await self._disk.close()

    # --- what is there ----------------------------------------------------------------

    def get(self, owner: str, id: str) -> FileRecord:
        """Raises FileMissing."""
        record = self._records.get(id)
        if record is None or record.owner != owner or self._expired(record):
            raise FileMissing(f"there is no file {id[:70]!r}, or it expired", param="file_id")
        return record

    def has(self, id: str) -> bool:
        return id in self._records

    def list(self, owner: str, purpose: str | None = None) -> list[FileRecord]:
        """The oldest first."""
        found = [
            record
            for record in self._records.values()
            if record.owner == owner
            and (purpose is None or record.purpose == purpose)
            and not self._expired(record)
        ]
        return sorted(found, key=lambda record: (record.created, record.id))

    @asynccontextmanager
    async def reading(self, record: FileRecord) -> AsyncIterator[AsyncIterator[bytes]]:
        """Its content, as it was when this began. Raises StoreError."""
        file = await self._disk.do(open, self.path(record.id), "rb")

        async def chunks() -> AsyncIterator[bytes]:
            while chunk := await self._disk.do(file.read, READ_BYTES):
                yield chunk

        try:
            yield chunks()
        finally:
            self._disk.later(file.close)

    def path(self, id: str) -> Path:
        return self._shelf.path(id)

    async def delete(self, owner: str, id: str) -> None:
        """Raises FileMissing, BatchConflict, StoreError."""
        record = self.get(owner, id)
        if self.in_use(id):
            raise BatchConflict(
                f"{id} is what a batch reads: cancel the batch first", param="file_id"
            )
        await self._remove(record)

    async def sweep(self) -> None:
        """Removes what has expired."""
        for record in list(self._records.values()):
            if self._expired(record) and not self.in_use(record.id):
                try:
                    await self._remove(record)
                except StoreError as error:
                    log.warning("an expired file could not be removed: %s", error)

    # --- new ones ---------------------------------------------------------------------

    def upload(self) -> Upload:
        """To be closed, kept or not. Raises FilesFull, Overloaded."""
        if len(self._records) >= MAX_FILES:
            raise FilesFull(f"{MAX_FILES} files are kept, as many as may be: delete some")
        if self._num_uploads >= MAX_UPLOADS:
            raise Overloaded(f"{MAX_UPLOADS} files are being uploaded: try again in a moment")
        return Upload(self, self._ids.new("file-"))

    def new_id(self) -> str:
        return self._ids.new("file-")

    async def adopt(self, record: FileRecord, source: Path) -> None:
        """Takes a batch's file in, whose bytes were counted by `grow`. It may be done again.
        Raises StoreError."""
        await self._disk.do(self._shelf.adopt, record, source)
        self._records[record.id] = record

    def grow(self, num_bytes: int, *, limit: bool = True) -> None:
        """Counts bytes that are being written or, below 0, are gone. Raises FilesFull."""
        most = self._settings.max_files_bytes
        if limit and num_bytes > 0 and self.num_bytes + num_bytes > most:
            raise FilesFull(
                f"files take all of the {most} bytes that they may (max_files_bytes): delete some"
            )
        self.num_bytes += num_bytes

    async def _keep(self, file: IO[bytes], rest: bytearray, record: FileRecord) -> FileRecord:
        try:
            await self._disk.do(self._shelf.keep, file, rest, record)
        except BaseException:
            self.grow(-record.num_bytes)
            raise
        self._records[record.id] = record
        return record

    def _kept(self, keeping: asyncio.Task[FileRecord]) -> None:
        self._keeping.discard(keeping)
        if not keeping.cancelled():
            keeping.exception()  # told to whoever waits, if anybody does

    # --- inner ------------------------------------------------------------------------

    def _add(self, record: FileRecord) -> None:
        self._records[record.id] = record
        self.num_bytes += record.num_bytes

    async def _remove(self, record: FileRecord) -> None:
        await self._disk.do(self._shelf.remove, record.id)
        if self._records.pop(record.id, None) is not None:
            self.num_bytes -= record.num_bytes

    def _expired(self, record: FileRecord) -> bool:
        return record.expires is not None and record.expires <= self.clock()


class Upload:
    """A file on its way in. What is written is on disk when `keep` returns, and nothing of it
    after `close` where it was not kept."""

    def __init__(self, files: Files, id: str):
        self._files = files
        self._id = id
        self._file: IO[bytes] | None = None
        self._buffer = bytearray()
        self._kept = False
        self._closed = False
        self.num_bytes = 0
        files._num_uploads += 1

    async def write(self, data: bytes) -> None:
        """Raises BodyTooLarge, FilesFull, StoreError."""
        most = self._files._settings.max_file_bytes
        if self.num_bytes + len(data) > most:
            raise BodyTooLarge(
                f"the file is over {most} bytes (max_file_bytes): send less", param="file"
            )
        self._files.grow(len(data))
        self.num_bytes += len(data)
        self._buffer += data
        if len(self._buffer) >= WRITE_BYTES:
            await self._flush()

    async def keep(
        self, owner: str, *, filename: str, purpose: str, expires_after_s: int | None
    ) -> FileRecord:
        """Done even where its caller leaves. Raises StoreError."""
        now, files = self._files.clock(), self._files
        lasts_s = KEEP_S if expires_after_s is None and purpose == "batch" else expires_after_s
        record = FileRecord(
            id=self._id,
            owner=owner,
            filename=filename,
            purpose=purpose,
            num_bytes=self.num_bytes,
            created=now,
            expires=None if lasts_s is None else now + lasts_s,
        )
        file = await self._open()
        self._kept = True
        keeping = asyncio.create_task(files._keep(file, self._buffer, record))
        files._keeping.add(keeping)
        keeping.add_done_callback(files._kept)
        return await asyncio.shield(keeping)

    def close(self) -> None:
        """Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._files._num_uploads -= 1
        if self._kept:
            return
        self._files.grow(-self.num_bytes)
        if self._file is not None:
            self._files._disk.later(self._files._shelf.drop, self._file, self._id)

    async def _open(self) -> IO[bytes]:
        if self._file is None:
            opening = asyncio.ensure_future(
                self._files._disk.do(self._files._shelf.create, self._id)
            )
            opening.add_done_callback(self._opened)
            await asyncio.shield(opening)
        assert self._file is not None
        return self._file

    def _opened(self, opening: asyncio.Future[IO[bytes]]) -> None:
        if opening.cancelled() or opening.exception() is not None:
            return
        self._file = opening.result()
        if self._closed:
            self._files._disk.later(self._files._shelf.drop, self._file, self._id)

    async def _flush(self) -> None:
        file = await self._open()
        data, self._buffer = self._buffer, bytearray()
        await self._files._disk.do(self._files._shelf.write, file, data)
