"""What the batches of a server share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import msgspec

from lmserve.atomic import write_atomic
from lmserve.errors import LmserveError
from lmserve.service.batches.disk import Disk, sync_folder
from lmserve.service.batches.files import KEEP_S, Files
from lmserve.service.batches.records import BatchRecord
from lmserve.service.metrics import Metrics

LEISURE_EVERY_S = 0.05  # looks whether others have what they want


class Answerer(Protocol):
    """Answers one line as its route would, at the lowest priority."""

    @property
    def endpoints(self) -> Collection[str]: ...

    async def answer(self, owner: str, endpoint: str, body: bytes) -> bytes:
        """JSON, in one line. Raises LmserveError."""
        ...

    def failure(self, error: LmserveError) -> bytes:
        """JSON, in one line."""
        ...


@dataclass(slots=True)
class Shop:
    """Lives on the service's loop."""

    answerer: Answerer
    files: Files
    metrics: Metrics
    at_leisure: Callable[[], bool]
    clock: Callable[[], float]
    max_line_bytes: int
    num_places: int  # lines that run together, of all batches
    on_end: Callable[[BatchRecord], object] = lambda _: None
    folder: Path = field(default_factory=Path)
    disk: Disk = field(default_factory=lambda: Disk("batches"))
    keep_s: float = KEEP_S
    _places: asyncio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self._places = asyncio.Semaphore(self.num_places)

    async def take_place(self) -> None:
        """For one line, once nobody else waits."""
        await self._places.acquire()
        try:
            while not self.at_leisure():  # noqa: ASYNC110  nothing tells when it is
                await asyncio.sleep(LEISURE_EVERY_S)
        except BaseException:
            self._places.release()
            raise

    def give_place(self) -> None:
        self._places.release()

    async def save(self, record: BatchRecord) -> None:
        """Raises StoreError."""
        await self.disk.do(_save, self.folder / f"{record.id}.json", msgspec.json.encode(record))


def _save(path: Path, data: bytes) -> None:
    write_atomic(path, data, 0o600)
    sync_folder(path.parent)
