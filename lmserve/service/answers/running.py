"""One answer that is kept, being made by a task of the service.

begin ─► its row on disk ─► told ─► deltas, chunks … ─► end: text, tokens, last events on disk
                                                             └─► told ─► the successor, if any
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from lmserve.errors import AnswerConflict, EngineError, LmserveError, StoreError
from lmserve.service.answers.answer import Answer
from lmserve.service.answers.log import AnswerLog
from lmserve.service.answers.means import Means
from lmserve.service.answers.outcome import STATES, error_of, status_of
from lmserve.service.answers.records import Queued, Record, Steered, Updated
from lmserve.service.answers.steering import Applied, Steering
from lmserve.service.content_tokens import named
from lmserve.service.items import Items, as_chat, parts_of, to_message, told_apart
from lmserve.service.sessions import line as lines
from lmserve.service.store import answers as store_answers
from lmserve.service.store.records import Beginning, Said
from lmserve.service.store.store import Store
from lmserve.types import Content, Done, TextDelta

# While it waits, its place is told: first when it has waited for a moment, then so often.
QUEUED_AFTER_S = 0.25
QUEUED_EVERY_S = 1.0

log = logging.getLogger(__name__)

Succeed = Callable[["RunningAnswer"], Awaitable[Answer]]


class RunningAnswer(Answer):
    """`run` is its task; `begun` is done once its row is on disk."""

    def __init__(self, means: Means, record: Record):
        loop = asyncio.get_running_loop()
        home = means.place.home
        self.ask = means.ask  # with its settings as they were changed since
        self.place = means.place
        self.stream = means.stream
        self.begun: asyncio.Future[None] = loop.create_future()
        self._means = means
        self._record = record
        self._generation = means.generation
        self._transcript = means.plan.transcript
        self._keeper = home.keeper
        self._log = AnswerLog(
            record.id, means.stream, means.narrator, home.keeper if home.durable else None
        )
        self._steering = Steering(record.id, home.keeper, self._log)
        self._items = Items()
        self._apart = False  # what it says is more than a text
        self._closing = False  # too late to change anything
        self.cancelled = False  # and nothing is to follow
        self._ended: asyncio.Future[None] = loop.create_future()
        self._successor: asyncio.Future[Answer | None] = loop.create_future()

    @property
    def record(self) -> Record:
        if self._record.ended is None:
            self._record.text = self._transcript.answer() if self.ask.generate else ""
            if self._generation.ttft_s is not None:
                self._record.status = "in_progress"
        return self._record

    async def ended(self) -> Record:
        await asyncio.shield(self._ended)
        return self._record

    async def successor(self) -> Answer | None:
        return await asyncio.shield(self._successor)

    async def over(self) -> None:
        """As `ended`, but raises nothing."""
        await asyncio.wait([self._ended])

    # --- from outside -----------------------------------------------------------------

    def stop(self, reason: str = "cancelled") -> None:
        """At its next token; what was said is kept."""
        self.cancelled = self.cancelled or reason == "cancelled"
        self._generation.abort(reason)

    def drop(self) -> None:
        """Its session goes, and it with it."""
        self.gone = True
        self.stop()

    async def update(self, changes: Mapping[str, Any], told: Mapping[str, Any]) -> None:
        """Raises AnswerConflict, InvalidField, StoreError."""
        self._check_open("nothing of it can be changed")
        token_index = self._means.service.update(self._generation, **changes)
        request = dataclasses.replace(self.ask.request, **_as_asked(changes))
        now_told = {**self._record.told, **told}
        self.ask = dataclasses.replace(self.ask, request=request, told=now_told)
        self._record.told, id = now_told, self._record.id
        self._log.notice(Updated(id, token_index, changes))
        await asyncio.shield(
            self._keeper.write(lambda store: store_answers.set_told(store, id, now_told))
        )

    async def steer(self, messages: Sequence[Mapping[str, Any]], given: Any) -> str:
        """Raises AnswerConflict, InvalidField, Overloaded, StoreError."""
        self._check_open("begin another that follows it")
        return await self._steering.take(messages, given, self._on_steered, self._items.calls)

    def applied(self) -> Applied:
        """Its steers, for the successor."""
        return self._steering.applied(len(self._transcript.answer_ids()))

    def _on_steered(self, notice: Steered) -> None:
        """A call is made to its end: what steers follows its output."""
        self._log.notice(notice)
        if not self._items.calls:
            self._generation.abort("steered")

    def _check_open(self, remedy: str) -> None:
        if self._closing or self.cancelled:
            raise AnswerConflict(f"{self._record.id} has ended: {remedy}")

    # --- its task ---------------------------------------------------------------------

    async def run(self, succeed: Succeed) -> None:
        """`succeed` makes the successor, in the same turn of the session."""
        turns = self.place.home.turns
        turns.started(self.place.key, self)
        successor = None
        try:
            with self._generation.lease():
                await self._begin()
                outcome = await self._follow()
            await self._end(outcome)
            successor = await self._succeed(succeed)
            self._record.successor = None if successor is None else successor.record.id
        except Exception as error:
            if not isinstance(error, LmserveError):
                log.exception("%s could not be made", self._record.id)
                error = EngineError("the server failed to make this answer")
            self._fail(error)
        finally:
            turns.ended(self.place.key, self)
            if successor is None:
                self.place.leave()
            self._successor.set_result(successor)

    def _fail(self, error: Exception) -> None:
        """It did not begin, or did not end as it should."""
        for waited in (self.begun, self._ended):
            if not waited.done():
                waited.set_exception(error)
                waited.exception()  # nobody need ask

    async def _begin(self) -> None:
        """While the engine makes the first token. Raises StoreError, SessionNotFound,
        MessageNotFound, AnswerConflict."""
        record, place, plan = self._record, self.place, self._means.plan
        applied, prompt = self._means.applied, self._transcript.prompt_ids

        def work(store: Store, now: float) -> tuple[list[int], int | None]:
            answer = lines.answer_entry(place.line, plan.messages, prompt, place.text_key)
            beginning = Beginning(
                record=record,
                new=place.new,
                after=place.after,
                carried=place.carried,
                inputs=lines.input_entries(place.line, plan.messages, prompt, place.text_key),
                answer=answer if self.ask.generate else None,
                idempotency=self.ask.idempotency,
                steered=None if applied is None else applied.response,
            )
            return store_answers.begin(store, beginning, now)

        record.input_ids, record.message_id = await self._keeper.add(place.key, work)
        self._log.open(record)
        for notice in () if applied is None else applied.notices(record.id):
            self._log.notice(notice)
        if plan.said_ids:
            parts = self._transcript.said_parts
            self._show(TextDelta(plan.said, list(plan.said_ids), parts))
        self.begun.set_result(None)

    async def _follow(self) -> Done | LmserveError:
        generation = self._generation
        show = self._show if self.ask.generate else lambda _: True
        asyncio.get_running_loop().call_later(QUEUED_AFTER_S, self._tell_place)
        try:
            await generation.follow(show)
            async for event in generation.events():
                if isinstance(event, Done):
                    return event
                show(event)
        except LmserveError as error:
            return error
        except Exception:  # of whoever tells it
            log.exception("%s could not be told", self._record.id)
        return EngineError("the server failed to tell this answer")

    def _show(self, delta: TextDelta) -> bool:
        if delta.parts is None and self._generation.sampling.logprobs is not None:
            rated = named(delta.logprobs or (), self._generation.vocabulary.token_bytes)
            delta.parts = [Content(delta.text, rated)] if delta.text else []
        self._apart = self._apart or delta.parts is not None
        for part in parts_of(delta):
            self._items.add(part)
        self._log.delta(delta)
        return True

    def _tell_place(self, told: tuple[int, float | None] | None = None) -> None:
        """As long as it waits."""
        place = self._means.service.position(self._generation)
        if place is None or self._closing:
            return
        _, estimate_s = place
        if place != told and estimate_s != 0.0:  # 0.0: the engine is about to begin with it
            self._log.notice(Queued(*place))
        asyncio.get_running_loop().call_later(QUEUED_EVERY_S, self._tell_place, place)

    async def _end(self, outcome: Done | LmserveError) -> None:
        await self._steering.settled()
        self._closing = True
        chunk = await self._log.rest()
        num_told = len(chunk.events)
        record = self._concluded(outcome)
        closing = await self._log.closing(record)
        chunk.events.extend(closing)

        def work(store: Store, now: float) -> list[int] | None:
            ids = self._transcript.answer_ids() if self.ask.generate else []
            state = STATES.get(record.status)
            said = Said(record.text, ids, state, record.items) if self.ask.generate else None
            return ids if store_answers.end(store, record, said, chunk, now) else None

        try:
            ids = await self._keeper.add(self.place.key, work)
        except StoreError as error:
            ids, outcome = None, error
            record = self._concluded(error)
            closing = await self._log.closing(record)
            chunk.events[num_told:] = closing
            self._keeper.add_later(work)
        self._record = record
        self._log.tell(closing, written=True)
        if ids is not None:
            spill = self.place.home.durable
            ran, cache_salt = [*self._transcript.prompt_ids, *ids], self._generation.cache_salt
            self._means.warmth.used(self.place.key, ran, spill=spill, cache_salt=cache_salt)
        if isinstance(outcome, Done) or record.status != "failed":
            self._ended.set_result(None)
        else:
            self._ended.set_exception(outcome)
            self._ended.exception()  # nobody need ask

    def _concluded(self, outcome: Done | LmserveError) -> Record:
        stopped_by = "cancelled" if self.cancelled else self._generation.abort_reason
        status, reason = status_of(outcome, stopped_by, speaks=self.ask.generate)
        usage = self._generation.usage
        if usage is not None and not self.ask.generate:
            usage = dataclasses.replace(usage, completion_tokens=0)  # its one token is not kept
        record = self.record
        items = self._items.whole(cut=status != "completed") if self._apart else None
        return dataclasses.replace(
            record,
            items=None if items is None else told_apart(record.text, items),
            status=status,
            reason=reason,
            ended=self._keeper.clock(),
            usage=usage,
            error=error_of(outcome) if status == "failed" else None,
        )

    # --- and then ---------------------------------------------------------------------

    async def _succeed(self, succeed: Succeed) -> Answer | None:
        """Goes on with what it was steered with; what cannot be said is told last."""
        reason = self._record.reason
        if not self._steering.steers or reason == "server_shutdown":
            return None  # or the next server goes on with it
        try:
            if self.cancelled or reason == "abandoned":
                raise AnswerConflict(f"{self._record.id} was {reason or 'cancelled'}")
            answer = as_chat(to_message(self._record.text, self._record.items))
            if not await self._steering.waits(answer):
                return await succeed(self)
        except LmserveError as error:
            await self._steering.refuse(error)
        return None


def _as_asked(changes: Mapping[str, Any]) -> dict[str, Any]:
    """As fields of a request."""
    stop = changes.get("stop")
    return {**changes, **({} if stop is None else {"stop": tuple(stop)})}
