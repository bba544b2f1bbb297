"""Conversations kept on the server: one turn at a time, stored before it is acknowledged.

    turn ─► wait for the turns before ─► load ─► generate ─► … ─► ended ─► store ─► next turn
                                                               │
                       by itself, by cancel, or because its client left: whoever ends it

A session's slot is held all the way and given back by what ends it, never by a handler's task.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from msgspec import UNSET, UnsetType

from lmserve.errors import InvalidField, PromptTooLong, SessionLost
from lmserve.service.generate import Service
from lmserve.service.prompt import ModelText
from lmserve.service.sessions import line as lines
from lmserve.service.sessions.tree import Node, SessionInfo, check_many
from lmserve.service.sessions.trees import Trees
from lmserve.service.sessions.turns import Slot, Turn
from lmserve.service.store import forgetting
from lmserve.service.store import trees as store_tree
from lmserve.service.store.store import Entry, Line, SessionKey, Store
from lmserve.service.transcript import Transcript
from lmserve.service.warm.warming import Cold, Warming
from lmserve.service.work import Outcome
from lmserve.settings import SessionSettings
from lmserve.types import Done, GenerateRequest

__all__ = ["UNSET", "Node", "SessionInfo", "SessionKey", "Sessions", "Turn"]


class Sessions(Trees):
    """Lives on the service's loop. A session or message of another owner is as none."""

    def __init__(
        self,
        service: Service,
        settings: SessionSettings,
        *,
        clock: Callable[[], float] = time.time,
        warmth: Warming | None = None,
    ):
        super().__init__(settings, clock, warmth or Cold())
        self._service = service

    def new_id(self) -> int:
        """A free session id for a client that gave none (-1)."""
        return secrets.randbits(52) + 1  # JavaScript's numbers are exact so far

    def new_session_id(self) -> str:
        """A free session id, where it need be no number."""
        return self.ids.new("sess_")

    # --- calls ------------------------------------------------------------------------

    async def turn(
        self,
        key: SessionKey,
        request: GenerateRequest,
        *,
        keep: bool,
        after: int | None | UnsetType = UNSET,
        must_exist: bool = False,
    ) -> Turn:
        """Waits for the session's earlier calls, in order, then starts the answer to
        `request.messages` (or `request.text`) after what the session holds; a session that does
        not exist begins. `keep` False: the session ends with this turn.

        With `after` (a message of the session; None: before the first) or `must_exist`, exactly
        these messages follow there; where there are none, the message there is answered (again).

        Raises SessionBusy (it is being answered and `session_busy` says refuse; or it was ended
        while this waited), Overloaded (8 wait already), SessionLost (it was forgotten: told
        once, the next call begins anew) or with `must_exist` SessionNotFound, MessageNotFound,
        SessionFull (no room for an answer: nothing changed, or, without `keep`, the session is
        ended), and whatever `Service.generate` raises. A caller cancelled while it waits leaves
        the queue."""
        slot, request = await self._service.in_time(request, partial(self.turns.enter, key))
        try:
            _, line = await self._load(slot, after, tell_lost=keep, must_exist=must_exist)
            exact = must_exist or after is not UNSET
            new = await lines.find_new(line, request, exact=exact)
            transcript = Transcript()
            known = () if line.history is None else line.history.token_ids
            await self.warmth.ready(key, known, request.cache_salt)
            try:
                generation = await self._service.generate(
                    lines.extended(request, key, line, new), transcript
                )
            except PromptTooLong as error:
                if not keep and not slot.ended:
                    await asyncio.shield(self.keeper.write(_delete(key)))
                raise lines.full(error, line) from None
        except BaseException:
            self.turns.leave(slot)
            raise
        turn = Turn(generation, line.num_tokens)
        slot.generation = generation
        generation.on_ended(
            partial(self._on_ended, slot, turn, line, new, transcript if keep else None)
        )
        if slot.cancelled or slot.ended:  # while it was being prepared
            generation.abort()
        slot.check()
        return turn

    async def append(self, key: SessionKey, messages: Sequence[dict[str, Any]]) -> int:
        """Adds messages without an answer (a client replays a history with a budget of 0); a
        session that does not exist begins. Returns the tokens that were in the session before."""
        line, _ = await self._append(key, messages, UNSET, exact=False)
        return line.num_tokens

    async def add(
        self,
        key: SessionKey,
        messages: Sequence[dict[str, Any]],
        *,
        after: int | None | UnsetType = UNSET,
    ) -> Sequence[Node]:
        """Adds exactly these messages, without an answer; the last one is the head then. Raises
        SessionNotFound, MessageNotFound, InvalidField, SessionFull."""
        if not messages:
            raise InvalidField("messages is empty: give at least one message", param="messages")
        _, nodes = await self._append(key, messages, after, exact=True)
        return nodes

    def cancel(self, key: SessionKey) -> bool:
        """Stops the session's running answers, at once and without queueing; what was said so
        far stays in the session. Says whether there was one."""
        slot = self.turns.current(key)
        running = self.turns.running(key)
        for answer in running:
            answer.stop()
        num_stopped = len(running)
        if key.number is not None:  # whatever route made them
            num_stopped += self._service.abort_session(key.owner, key.number)
        if slot is None:
            return num_stopped > 0
        if slot.generation is None:
            slot.cancelled = True
            return True
        if slot.generation.ended:
            return num_stopped > 0
        slot.generation.abort()
        return True

    async def end(self, key: SessionKey) -> None:
        """Forgets the session, at once and without queueing; a running answer is stopped, calls
        that wait for their turn get SessionBusy. One that does not exist is no error."""
        await self._end(key, must_exist=False)

    async def delete(self, key: SessionKey) -> None:
        """As `end`, of a session that exists."""
        await self._end(key, must_exist=True)

    async def peek(
        self, key: SessionKey, after: int | None | UnsetType = UNSET
    ) -> tuple[ModelText, Line]:
        """What a turn there would follow, now: it waits for no other. Raises SessionNotFound,
        MessageNotFound, AnswerConflict."""
        text = await self._service.model_text()
        line = await self.keeper.read(
            lambda store: store.load(key, text.text_key, after, must_exist=True)
        )
        return text, line

    # --- the parts of a turn ----------------------------------------------------------

    async def _load(
        self,
        slot: Slot,
        at: int | None | UnsetType = UNSET,
        *,
        tell_lost: bool,
        must_exist: bool = False,
    ) -> tuple[ModelText, Line]:
        """What the session holds up to there, told in the tokens of the model served now."""
        key = slot.key
        text = await self._service.model_text()

        def work(store: Store) -> Line:
            reason = None if must_exist else forgetting.take_lost(store, key)
            if reason is not None and tell_lost:
                raise SessionLost(
                    f"session {key.id} was forgotten: {reason}; the next call begins it anew"
                )
            return store.load(key, text.text_key, at, must_exist=must_exist)

        line = await self.keeper.read(work, key)
        slot.check()
        return text, line

    async def _append(
        self,
        key: SessionKey,
        messages: Sequence[dict[str, Any]],
        after: int | None | UnsetType,
        *,
        exact: bool,
    ) -> tuple[Line, Sequence[Node]]:
        await check_many(messages)
        slot = await self.turns.enter(key)
        try:
            text, line = await self._load(slot, after, tell_lost=True, must_exist=exact)
            new = list(messages) if exact else lines.not_repeated(line, messages)
            try:
                lines.check_room(text, [*line.messages, *new])
            except PromptTooLong as error:
                raise lines.full(error, line) from None
        except BaseException:
            self.turns.leave(slot)
            raise

        def work(store: Store, now: float) -> Sequence[Node]:
            ids = store.add(key, [*map(Entry, new)], now, after=line.end)
            return store_tree.nodes(store, key, ids)

        return line, await self._write_and_leave(slot, work)

    def _on_ended(
        self,
        slot: Slot,
        turn: Turn,
        line: Line,
        new: Sequence[dict[str, Any]],
        transcript: Transcript | None,
        outcome: Outcome,
    ) -> None:
        """Called by the generation, perhaps in a task that is being cancelled."""
        if slot.ended or not isinstance(outcome, Done):  # nothing of it is kept
            self.turns.leave(slot)
            turn.settle(None)
            return

        ran: list[int] = []

        def work(store: Store, now: float) -> Sequence[Node]:
            assert transcript is not None
            entries = lines.entries(line, new, transcript)
            ran.extend((*transcript.prompt_ids, *transcript.answer_ids()))
            ids = store.add(slot.key, entries, now, after=line.end)
            return store_tree.nodes(store, slot.key, ids)

        if transcript is None:
            written = self.keeper.write(_delete(slot.key))
        else:
            written = self.keeper.add(slot.key, work)

        def on_written(written: asyncio.Future[Sequence[Node]]) -> None:
            self.turns.leave(slot)
            if transcript is None:
                self.warmth.gone(slot.key)
            elif written.exception() is None and not slot.ended:
                self.warmth.used(slot.key, ran, cache_salt=turn.generation.cache_salt)
            turn.settle(written)

        written.add_done_callback(on_written)

    async def _end(self, key: SessionKey, *, must_exist: bool) -> None:
        slot = self.turns.end(key)
        generation = None if slot is None else slot.generation

        def work(store: Store) -> None:
            if must_exist and generation is None:  # else it has begun, stored or not
                store_tree.info(store, key)
            store.delete(key)

        deleted = self.keeper.write(work)  # after what is being written now
        self.warmth.gone(key)
        if generation is not None:
            generation.abort()
        await asyncio.shield(deleted)


def _delete(key: SessionKey) -> Callable[[Store], Sequence[Node]]:
    def work(store: Store) -> Sequence[Node]:
        store.delete(key)
        return ()

    return work
