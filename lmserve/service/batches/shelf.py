"""Files in one folder: each is its id's content, with its record beside it. Not for the loop."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import msgspec

from lmserve.atomic import write_atomic
from lmserve.service.batches.disk import sync_folder
from lmserve.service.batches.records import FileRecord

_RECORD, _PART = ".json", ".part"
_ID = re.compile(r"file-[0-9a-f]{32}")


class Shelf:
    def __init__(self, folder: Path):
        self._folder = folder

    def path(self, id: str) -> Path:
        return self._folder / id

    def open(self) -> list[FileRecord]:
        """What is there; what an earlier server did not finish is removed."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        records = [record for path in self._folder.glob(f"*{_RECORD}") if (record := _read(path))]
        whole = {record.id: record for record in records if self.path(record.id).is_file()}
        for path in list(self._folder.iterdir()):
            if path.is_file() and path.name.removesuffix(_RECORD) not in whole:
                path.unlink()
        return list(whole.values())

    def create(self, id: str) -> IO[bytes]:
        """To be kept, or dropped."""
        part = self._folder / f"{id}{_PART}"
        return open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", buffering=0)

    @staticmethod
    def write(file: IO[bytes], data: bytes | bytearray) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[file.write(rest) :]

    def drop(self, file: IO[bytes], id: str) -> None:
        """It was not kept."""
        file.close()
        for path in self._paths(id):
            path.unlink(missing_ok=True)

    def keep(self, file: IO[bytes], rest: bytes | bytearray, record: FileRecord) -> None:
        """With `rest` it is whole. It is there for good when this returns, and not at all where it
        raises."""
        try:
            self.write(file, rest)
            os.fsync(file.fileno())
            file.close()
            self.adopt(record, self._folder / f"{record.id}{_PART}")
        except BaseException:
            self.drop(file, record.id)
            raise

    def adopt(self, record: FileRecord, source: Path) -> None:
        """Takes a finished file in, which may have been done before. `open` removes a record
        without its content, so it comes first."""
        write_atomic(self._folder / f"{record.id}{_RECORD}", msgspec.json.encode(record), 0o600)
        if source.exists():
            os.replace(source, self.path(record.id))
        sync_folder(self._folder)

    def remove(self, id: str) -> None:
        """The record first: without it there is no such file."""
        (self._folder / f"{id}{_RECORD}").unlink(missing_ok=True)
        self.path(id).unlink(missing_ok=True)

    def _paths(self, id: str) -> Iterator[Path]:
        for suffix in (_RECORD, _PART, ""):
            yield self._folder / f"{id}{suffix}"


def _read(path: Path) -> FileRecord | None:
    """None: it is not what was written."""
    try:
        record = msgspec.json.decode(path.read_bytes(), type=FileRecord)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    named = _ID.fullmatch(record.id) and path.name == f"{record.id}{_RECORD}"
    return record if named else None
