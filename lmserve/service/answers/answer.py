"""One answer that is kept, whoever reads it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable

from lmserve.errors import EngineError
from lmserve.service.answers.records import Record
from lmserve.service.store.rows import SessionKey
from lmserve.service.streams.stream import Stream


class Answer(ABC):
    """One that runs, or ended lately."""

    stream: Stream
    gone = False  # with its session: it is found no longer

    @property
    @abstractmethod
    def record(self) -> Record:
        """As it is now."""

    @abstractmethod
    async def ended(self) -> Record:
        """Waits for its end, which is on disk then. Raises EngineError and the like where it
        failed. Keep a reader of `stream` meanwhile, or it may be abandoned."""

    @abstractmethod
    async def successor(self) -> Answer | None:
        """After its end: the answer that goes on with what it was steered with, if it was."""


class EndedAnswer(Answer):
    """As it is kept. `find` gives the answer of an id, as long as it is there."""

    def __init__(
        self, record: Record, stream: Stream, find: Callable[[str], Awaitable[Answer | None]]
    ):
        self.stream = stream
        self._record = record
        self._find = find

    @property
    def key(self) -> SessionKey:
        return SessionKey(self._record.owner, self._record.session)

    @property
    def record(self) -> Record:
        return self._record

    async def ended(self) -> Record:
        if self._record.error is not None:
            raise EngineError(self._record.error[1])
        return self._record

    async def successor(self) -> Answer | None:
        id = self._record.successor
        return None if id is None else await self._find(id)
