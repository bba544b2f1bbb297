"""How answers that are kept are made: placed, prepared, begun, each in a task of the service."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
from collections.abc import Callable

from msgspec import UNSET

from lmserve.errors import PromptTooLong
from lmserve.service.answers.answer import Answer, EndedAnswer
from lmserve.service.answers.archive import ID_PREFIX, Archive
from lmserve.service.answers.means import Means
from lmserve.service.answers.places import Place, Places, Plan
from lmserve.service.answers.records import Ask, Narrator, Record
from lmserve.service.answers.running import RunningAnswer
from lmserve.service.answers.steering import Applied
from lmserve.service.generate import Service
from lmserve.service.generation import Generation
from lmserve.service.sessions import line as lines
from lmserve.service.sessions.sessions import Sessions
from lmserve.service.sessions.turns import Slot
from lmserve.service.store.store import SessionKey
from lmserve.service.streams.stream import Stream
from lmserve.service.streams.streams import Streams


class Maker:
    """Lives on the service's loop."""

    def __init__(
        self,
        service: Service,
        sessions: Sessions,
        streams: Streams,
        archive: Archive,
        make_narrator: Callable[[], Narrator],
        as_ended: Callable[[Record, Stream], Answer],
    ):
        self.answers: dict[str, Answer] = {}  # whose streams are in memory
        self._service = service
        self._ids = sessions.ids
        self._warmth = sessions.warmth
        self._streams = streams
        self._places = Places(service, sessions, archive)
        self._make_narrator = make_narrator
        self._as_ended = as_ended
        self._tasks: set[asyncio.Task[None]] = set()
        sessions.turns.on_end = self._on_session_end
        archive.running = lambda: [
            id for id, answer in self.answers.items() if isinstance(answer, RunningAnswer)
        ]

    async def close(self) -> None:
        """Waits until the last answers are on disk. Idempotent."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def make(
        self, ask: Ask, slot: Slot | None = None, applied: Applied | None = None
    ) -> RunningAnswer:
        """Returns when its id is on disk. `slot`: the session's turn, which is held already;
        `applied`: the steers that are its input. Raises as `Answers.begin` does."""
        (place, plan), left = await self._service.in_time(
            ask.request, functools.partial(self._prepare, ask, slot)
        )
        try:
            generation = await self._generate(place, plan, left.deadline_s)
        except BaseException:
            place.leave()
            raise
        answer = self._make(ask, place, plan, generation, applied or plan.applied)
        await asyncio.shield(answer.begun)
        if plan.applied is not None and plan.applied.response in self.answers:
            self.answers[plan.applied.response].record.successor = answer.record.id
        return answer

    async def _prepare(self, ask: Ask, slot: Slot | None) -> tuple[Place, Plan]:
        place = await self._places.find(ask, slot)
        try:
            plan = await self._places.plan(ask, place)
            if not place.new:
                known = () if (history := plan.request.history) is None else history.token_ids
                await self._warmth.ready(place.key, known, plan.request.cache_salt)
        except BaseException:
            place.leave()
            raise
        return place, plan

    async def _generate(self, place: Place, plan: Plan, deadline_s: float | None) -> Generation:
        """No await may follow before the answer's task has begun."""
        request = dataclasses.replace(plan.request, deadline_s=deadline_s)
        try:
            generation = await self._service.generate(request, plan.transcript)
        except PromptTooLong as error:
            if not place.line.messages:
                raise
            raise lines.full(error, place.line) from None
        if place.slot is not None:
            place.slot.generation = generation
            if place.slot.cancelled or place.slot.ended:  # while it was being prepared
                generation.abort()
            place.slot.check()
        return generation

    def _make(
        self,
        ask: Ask,
        place: Place,
        plan: Plan,
        generation: Generation,
        applied: Applied | None,
    ) -> RunningAnswer:
        record = Record(
            id=self._ids.new(ID_PREFIX),
            owner=ask.owner,
            session=place.key.id,
            previous=ask.previous,
            created=place.home.keeper.clock(),
            model=generation.model,
            told=ask.told,
            status="queued" if ask.background else "in_progress",
            background=ask.background,
        )
        stream = self._streams.open(
            record.id,
            ask.owner,
            lambda: answer.stop("abandoned"),
            grace=not ask.background,
            on_forgotten=lambda: self._forget(record.id),
        )
        narrator = self._make_narrator()
        answer = RunningAnswer(
            Means(
                ask, place, plan, generation, stream, narrator, self._service, self._warmth, applied
            ),
            record,
        )
        self.answers[record.id] = answer
        task = asyncio.create_task(self._run(answer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return answer

    async def _run(self, answer: RunningAnswer) -> None:
        await answer.run(self._succeed)
        self._streams.end(answer.stream)
        if answer.gone or answer.begun.exception() is not None:
            self._streams.forget(answer.stream)
        elif answer.record.id in self.answers:  # without all that it was made with
            self.answers[answer.record.id] = self._as_ended(answer.record, answer.stream)

    async def _succeed(self, answer: RunningAnswer) -> Answer:
        """What an answer was steered with is answered, in the same turn of its session."""
        applied = answer.applied()
        request = dataclasses.replace(answer.ask.request, messages=applied.messages, text=None)
        ask = dataclasses.replace(
            answer.ask,
            request=request,
            previous=answer.record.id,
            session=None,
            after=UNSET,
            continues=None,
            idempotency=None,
        )
        successor = await self.make(ask, answer.place.slot, applied)
        if answer.cancelled:  # while it was being prepared
            successor.stop()
        return successor

    def _forget(self, id: str) -> None:
        self.answers.pop(id, None)

    def _on_session_end(self, key: SessionKey) -> None:
        """Those that run are dropped by its turns."""
        for answer in list(self.answers.values()):
            if isinstance(answer, EndedAnswer) and answer.key == key:
                self._streams.forget(answer.stream)
