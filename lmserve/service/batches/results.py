"""The results of a batch: appended to two files, those of answers and those of errors."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from msgspec import Raw, Struct

from lmserve.service.batches.disk import Disk
from lmserve.service.batches.files import Files
from lmserve.service.batches.records import BatchRecord, Tokens


class _Cached(Struct):
    cached_tokens: int = 0


class _Reasoning(Struct):
    reasoning_tokens: int = 0


class _Usage(Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Cached | None = None
    completion_tokens_details: _Reasoning | None = None


class _Body(Struct):
    model: str | None = None
    usage: _Usage | None = None


class LineResponse(Struct, kw_only=True):
    status_code: int
    request_id: str
    body: Raw


class LineFailure(Struct, kw_only=True):
    code: str
    message: str


class LineResult(Struct, kw_only=True):
    """One line of either file."""

    id: str
    custom_id: str
    response: LineResponse | None
    error: LineFailure | None = None

    @classmethod
    def of(cls, custom_id: str, status: int, body: bytes) -> LineResult:
        id = f"batch_req_{secrets.token_hex(12)}"
        response = LineResponse(status_code=status, request_id=id, body=Raw(body))
        return cls(id=id, custom_id=custom_id, response=response)

    @classmethod
    def expired(cls, custom_id: str) -> LineResult:
        return cls(
            id=f"batch_req_{secrets.token_hex(12)}",
            custom_id=custom_id,
            response=None,
            error=LineFailure(
                code="batch_expired",
                message="this request was not run before the completion window expired",
            ),
        )

    @property
    def succeeded(self) -> bool:
        return self.response is not None and self.response.status_code < 400


@dataclass(slots=True)
class Tally:
    """As a batch's record has it."""

    num_completed: int = 0
    num_failed: int = 0
    tokens: Tokens = field(default_factory=Tokens)
    model: str | None = None

    def count(self, result: LineResult) -> None:
        if result.response is None or not result.succeeded:
            self.num_failed += 1
            return
        self.num_completed += 1
        try:
            body = msgspec.json.decode(result.response.body, type=_Body)
        except msgspec.DecodeError:
            return  # it tells no usage
        self.model = self.model or body.model
        if (usage := body.usage) is not None:
            self.tokens.input += usage.prompt_tokens
            self.tokens.output += usage.completion_tokens
            if usage.prompt_tokens_details is not None:
                self.tokens.cached += usage.prompt_tokens_details.cached_tokens
            if usage.completion_tokens_details is not None:
                self.tokens.reasoning += usage.completion_tokens_details.reasoning_tokens

    def add_to(self, record: BatchRecord) -> None:
        record.num_completed += self.num_completed
        record.num_failed += self.num_failed
        record.model = record.model or self.model
        tokens, more = record.tokens, self.tokens
        tokens.input += more.input
        tokens.cached += more.cached
        tokens.output += more.output
        tokens.reasoning += more.reasoning


@dataclass(slots=True)
class Sheet:
    """One of the files: on disk as far as `num_bytes`."""

    path: Path
    num_bytes: int = 0
    waiting: list[LineResult] = field(default_factory=list)

    def read(self) -> Iterator[LineResult]:
        """What is there; what was not written whole is cut off. Not for the loop."""
        self.num_bytes = 0
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            for text in file:
                try:
                    result = msgspec.json.decode(text, type=LineResult)
                except (msgspec.DecodeError, UnicodeDecodeError):
                    break
                if not text.endswith(b"\n"):
                    break
                self.num_bytes += len(text)
                yield result
        os.truncate(self.path, self.num_bytes)

    def append(self, data: bytes) -> None:
        """Not for the loop. Where it raises, the next one begins at the same place."""
        handle = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o600)
        with open(handle, "wb") as file:
            file.truncate(self.num_bytes)
            file.seek(self.num_bytes)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


class Results:
    """Lives on the service's loop. What is on disk is counted in the batch's record."""

    def __init__(self, record: BatchRecord, folder: Path, disk: Disk, files: Files):
        self._record = record
        self._disk = disk
        self._files = files
        self._writing = asyncio.Lock()
        self.answers = Sheet(folder / f"{record.id}.output.jsonl")
        self.failures = Sheet(folder / f"{record.id}.errors.jsonl")
        self.ended = asyncio.Event()  # there is something to write

    async def open(self) -> None:
        """Counts what an earlier server wrote among the files. Raises StoreError."""

        def size() -> None:
            for sheet in (self.answers, self.failures):
                sheet.num_bytes = sheet.path.stat().st_size if sheet.path.exists() else 0

        await self._disk.do(size)
        self._files.grow(self.answers.num_bytes + self.failures.num_bytes, limit=False)

    async def read(self) -> set[str]:
        """What an earlier server wrote: which lines have a result. Raises StoreError."""
        record = self._record
        tally, before = Tally(), self.answers.num_bytes + self.failures.num_bytes
        done = await self._disk.do(self._read, tally)
        self._files.grow(self.answers.num_bytes + self.failures.num_bytes - before, limit=False)
        record.num_completed = record.num_failed = 0
        record.tokens, record.model = Tokens(), None
        tally.add_to(record)
        return done

    async def done(self) -> set[str]:
        """Which lines have a result. Raises StoreError."""
        return await self._disk.do(self._read, Tally())

    def add(self, result: LineResult) -> None:
        sheet = self.answers if result.succeeded else self.failures
        sheet.waiting.append(result)
        self.ended.set()

    async def write(self) -> None:
        """Whatever waits. Raises StoreError, FilesFull; then it waits on."""
        async with self._writing:
            self.ended.clear()
            for sheet in (self.answers, self.failures):
                if sheet.waiting:
                    await self._write(sheet)

    async def _write(self, sheet: Sheet) -> None:
        taken = list(sheet.waiting)
        data, tally = await self._disk.do(_encode, taken)
        self._files.grow(len(data))
        try:
            await self._disk.do(sheet.append, data)
        except BaseException:
            self._files.grow(-len(data))
            raise
        sheet.num_bytes += len(data)
        del sheet.waiting[: len(taken)]
        tally.add_to(self._record)

    def _read(self, tally: Tally) -> set[str]:
        """Not for the loop."""
        done: set[str] = set()
        for sheet in (self.answers, self.failures):
            for result in sheet.read():
                done.add(result.custom_id)
                tally.count(result)
        return done


def _encode(results: Sequence[LineResult]) -> tuple[bytes, Tally]:
    """Off the loop: a line of embeddings may be large."""
    tally = Tally()
    for result in results:
        tally.count(result)
    return b"".join([msgspec.json.encode(result) + b"\n" for result in results]), tally
