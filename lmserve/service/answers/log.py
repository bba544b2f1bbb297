"""What an answer tells, on its way to its readers and to the disk.

delta, notice ─► narrator ─► stream (now)
                     └─────► chunk ── every FLUSH_S, if there is anything ─► store
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from lmserve.service.answers.records import Narrator, Notice, Record, has_logprobs
from lmserve.service.store import answers as store_answers
from lmserve.service.store.keeper import Keeper
from lmserve.service.store.records import Chunk
from lmserve.service.streams.stream import Stream, StreamEvent
from lmserve.types import Part, TextDelta

FLUSH_S = 0.8  # what was told is on disk within a second


class AnswerLog:
    """Lives on the service's loop. The one producer of the answer's stream."""

    def __init__(self, id: str, stream: Stream, narrator: Narrator, keeper: Keeper | None):
        self._id = id
        self._stream = stream
        self._narrator = narrator
        self._keeper = keeper  # None: nothing is written before the end
        self._told: list[StreamEvent] = []  # since the last chunk
        self._texts: list[str] = []
        self._token_ids: list[int] = []
        self._parts: list[Part] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Future[None] | None = None

    def open(self, record: Record) -> None:
        self.tell(self._narrator.opening(record, self._stream.next))

    def delta(self, delta: TextDelta) -> None:
        self._texts.append(delta.text)
        self._token_ids += delta.token_ids
        if delta.parts is not None:
            self._parts = [] if self._parts is None else self._parts
            self._parts += delta.parts
        self.tell(self._narrator.delta(delta, self._stream.next))

    def notice(self, notice: Notice) -> None:
        self.tell((self._narrator.notice(notice, self._stream.next),))

    async def closing(self, record: Record) -> Sequence[StreamEvent]:
        """To be told once the record is on disk. Off the loop where it is much to say."""
        number = self._stream.next
        if has_logprobs(record):
            return await asyncio.to_thread(self._narrator.closing, record, number)
        return self._narrator.closing(record, number)

    def tell(self, events: Sequence[StreamEvent], *, written: bool = False) -> None:
        for event in events:
            self._stream.append(event)
        if events and not written:
            self._told += events
            self._schedule()

    async def rest(self) -> Chunk:
        """What is not written yet: whoever calls writes it."""
        while self._writing is not None:
            await asyncio.wait([self._writing])
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return self._take()

    # --- to disk ----------------------------------------------------------------------

    def _schedule(self) -> None:
        if self._keeper is not None and self._timer is None and self._writing is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self._write, self._keeper)

    def _write(self, keeper: Keeper) -> None:
        self._timer = None
        chunk = self._take()
        self._writing = keeper.write(lambda store: store_answers.add_chunk(store, self._id, chunk))
        self._writing.add_done_callback(lambda written: self._on_written(written, chunk))

    def _on_written(self, written: asyncio.Future[None], chunk: Chunk) -> None:
        self._writing = None
        if written.cancelled() or written.exception() is not None:  # once more, with what came
            self._told[:0] = chunk.events
            self._texts[:0] = [chunk.text]
            self._token_ids[:0] = chunk.token_ids
            if chunk.parts is not None:
                self._parts = [*chunk.parts, *(self._parts or ())]
        if self._told:
            self._schedule()

    def _take(self) -> Chunk:
        first = self._stream.next - len(self._told)
        chunk = Chunk(first, self._told, "".join(self._texts), self._token_ids, self._parts)
        self._told, self._texts, self._token_ids, self._parts = [], [], [], None
        return chunk
