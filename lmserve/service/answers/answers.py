"""Answers that are kept: made once, read by anyone who may, on any transport, then and later.

The service owns them, never a handler. An answer's id is that of its stream too. What carries an
id is sent after the commit that wrote it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lmserve.errors import (
    AnswerConflict,
    AnswerNotFound,
    EventsGone,
    KeyReused,
)
from lmserve.service.answers.answer import Answer, EndedAnswer
from lmserve.service.answers.archive import Archive, Home
from lmserve.service.answers.maker import Maker
from lmserve.service.answers.records import Ask, Narrator, Record
from lmserve.service.answers.running import RunningAnswer
from lmserve.service.generate import Service
from lmserve.service.sessions.sessions import Sessions
from lmserve.service.sessions.tree import Node
from lmserve.service.store import answers as store_answers
from lmserve.service.store import trees as store_tree
from lmserve.service.store.store import SessionKey
from lmserve.service.streams.stream import Stream
from lmserve.service.streams.streams import Streams

__all__ = ["Answer", "Answers"]


class Answers:
    """Lives on the service's loop. A response of another owner is as none."""

    def __init__(
        self,
        service: Service,
        sessions: Sessions,
        streams: Streams,
        make_narrator: Callable[[], Narrator],
    ):
        self._streams = streams
        self._archive = Archive(sessions, make_narrator)
        self._maker = Maker(
            service, sessions, streams, self._archive, make_narrator, self._as_ended
        )
        self._beginning: dict[tuple[str, str], asyncio.Future[Answer]] = {}  # by idempotency key

    async def open(self) -> None:
        """After `Sessions.open`: what a dead server left is incomplete (`server_restart`)."""
        await self._archive.open()

    async def close(self) -> None:
        """After the service: waits until the last answers are on disk. Idempotent."""
        await self._maker.close()
        await self._archive.close()

    async def begin(self, ask: Ask) -> Answer:
        """Starts it, or joins the one that came with the same idempotency key. Returns when its
        id is on disk. Until its first reader comes, it has the grace of a lost one.

        Raises AnswerNotFound (`previous`), AnswerConflict (that is still being made), KeyReused,
        and whatever `Sessions.turn` raises."""
        if ask.idempotency is None:
            return await self._maker.make(ask)
        return await self._begin_once(ask, *ask.idempotency)

    def running(self, owner: str, id: str) -> Answer | None:
        """Running, or ended so lately that its stream is in memory."""
        answer = self._maker.answers.get(id)
        if answer is None or answer.gone or answer.stream.owner != owner:
            return None
        return answer

    async def record(self, owner: str, id: str) -> Record:
        """Raises AnswerNotFound, as all that follow do."""
        answer = self.running(owner, id)
        if answer is not None:
            return answer.record
        return (await self._archive.find(owner, id))[1]

    async def stream(self, owner: str, id: str) -> Stream:
        """Its events: those of a running answer, or all of an ended one, from disk if need be.
        Raises EventsGone where they are not kept."""
        answer = self.running(owner, id)
        if answer is not None and not (answer.stream.ended and answer.stream.first):
            return answer.stream
        return await self._archive.stream(*await self._archive.find(owner, id))

    async def input(self, owner: str, id: str) -> Sequence[Node]:
        """The messages that were its input, itself left out; the line before them too."""
        home, record = await self._archive.find(owner, id)
        key = SessionKey(owner, record.session)
        line = await home.keeper.read(lambda store: store_tree.line(store, key, record.message_id))
        own = line and line[-1].id not in record.input_ids and _is_answer(line[-1])
        return line[:-1] if own else line

    async def cancel(self, owner: str, id: str) -> Record:
        """Stops it; what was said is kept. One that has ended stays as it is."""
        answer = self._running(owner, id)
        if answer is None:
            return await self.record(owner, id)
        answer.stop()
        await answer.over()
        return answer.record

    async def delete(self, owner: str, id: str) -> None:
        """Stops it and forgets it; its messages too, unless others follow them."""
        answer = self._running(owner, id)
        if answer is not None:
            answer.stop()
            await answer.successor()
        told = self.running(owner, id)
        if told is not None:
            self._streams.end(told.stream)
            self._streams.forget(told.stream)
        home, _ = await self._archive.find(owner, id)
        now = home.keeper.clock()
        await home.keeper.write(lambda store: store_answers.delete(store, owner, id, now))

    async def steer(
        self, owner: str, id: str, messages: Sequence[Mapping[str, Any]], given: Any
    ) -> str:
        """Stops the answer at its next token and goes on with these messages (user or tool):
        `Answer.successor` is the answer to them, with the same settings. Returns the steer's id
        once it is on disk; `Steered` is in the stream then. `given` is the input as it came, told
        back where it cannot be said: `SteerFailed` is the last event then, after the closing ones.

        Raises AnswerNotFound, AnswerConflict (it has ended), Overloaded (8 wait), InvalidField."""
        answer = self._running(owner, id)
        if answer is None:
            await self._archive.find(owner, id)
            raise AnswerConflict(f"{id} has ended: begin another that follows it")
        return await answer.steer(messages, given)

    async def update(
        self, owner: str, id: str, changes: Mapping[str, Any], told: Mapping[str, Any]
    ) -> None:
        """Changes `max_tokens`, `temperature` or `stop` of a running answer, from its next token
        on. `told`: what of its record's `told` changes with it, on disk when this returns. Raises
        AnswerNotFound, AnswerConflict, InvalidField."""
        answer = self._running(owner, id)
        if answer is None:
            await self._archive.find(owner, id)
            raise AnswerConflict(f"{id} has ended: nothing of it can be changed")
        await answer.update(changes, told)

    def of_session(self, owner: str, session: str) -> Sequence[Answer]:
        """Those running in it."""
        key = SessionKey(owner, session)
        found = self._archive.disk.turns.running(key) or self._archive.memory.turns.running(key)
        return [answer for answer in found if isinstance(answer, RunningAnswer)]

    # --- the parts of it --------------------------------------------------------------

    def _running(self, owner: str, id: str) -> RunningAnswer | None:
        answer = self.running(owner, id)
        return answer if isinstance(answer, RunningAnswer) else None

    async def _begin_once(self, ask: Ask, key: str, digest: bytes) -> Answer:
        """One at a time for each key."""
        at = (ask.owner, key)
        while (other := self._beginning.get(at)) is not None:
            await asyncio.wait([other])
        self._beginning[at] = mine = asyncio.get_running_loop().create_future()
        try:
            found = await self._archive.find_by_key(*at)
            if found is None:
                return await self._maker.make(ask)
            home, record, known = found
            if known != digest:
                raise KeyReused(
                    f"the idempotency key {key[:70]!r} came with another request before: give "
                    "each request its own"
                )
            if record.status == "failed":
                return await self._maker.make(ask)  # which takes the key over
            return self.running(ask.owner, record.id) or await self._ended(home, record)
        finally:
            del self._beginning[at]
            mine.set_result(None)

    async def _ended(self, home: Home, record: Record) -> Answer:
        try:
            stream = await self._archive.stream(home, record)
        except EventsGone:
            stream = self._archive.told_anew(record)
        return self._as_ended(record, stream)

    def _as_ended(self, record: Record, stream: Stream) -> Answer:
        async def find(id: str) -> Answer | None:
            try:
                return self.running(record.owner, id) or await self._ended(
                    *await self._archive.find(record.owner, id)
                )
            except AnswerNotFound:
                return None

        return EndedAnswer(record, stream, find)


def _is_answer(node: Node) -> bool:
    return bool(node.message.get("role") == "assistant")
