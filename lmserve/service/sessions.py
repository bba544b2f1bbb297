"""Conversations kept on the server: one turn at a time, stored before it is acknowledged.

    turn ─► wait for the turns before ─► load ─► generate ─► … ─► ended ─► store ─► next turn
                                                               │
                       by itself, by cancel, or because its client left: whoever ends it

A session's slot is held all the way and given back by what ends it, never by a handler's task.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from lmserve.errors import EngineError, PromptTooLong, SessionFull, SessionLost, StoreError
from lmserve.service import line as lines
from lmserve.service.generate import Service
from lmserve.service.generation import Generation
from lmserve.service.prompt import ModelText
from lmserve.service.store import Entry, Line, SessionKey, Store
from lmserve.service.transcript import Transcript
from lmserve.service.turns import Slot, Turns
from lmserve.settings import SessionSettings
from lmserve.text.chat import normalise_messages
from lmserve.types import Done, GenerateRequest

__all__ = ["SessionKey", "Sessions", "Turn"]

T = TypeVar("T")

LOST_PER_SESSION = 10  # reasons kept of forgotten sessions, for each session that may be kept
SWEEP_S = 60.0

log = logging.getLogger(__name__)


class Turn:
    """One answer within a session. Take a lease of `generation` before the next await."""

    def __init__(self, generation: Generation, history_tokens: int):
        self.generation = generation
        self.history_tokens = history_tokens  # in the session before this turn
        self._settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def input_tokens(self) -> int:
        """Tokens this turn added to the prompt."""
        return max(0, self.generation.num_prompt_tokens - self.history_tokens)

    async def settled(self) -> None:
        """Waits, after the answer's end, until the turn is on disk (or, where it is not kept,
        the session is gone). Raises StoreError where that failed. Call it before the end of the
        answer is told: what is acknowledged is not lost."""
        await asyncio.shield(self._settled)

    def _settle(self, written: asyncio.Future[None] | None) -> None:
        error = None if written is None else written.exception()
        if error is None:
            self._settled.set_result(None)
        else:
            self._settled.set_exception(error)
            self._settled.exception()  # nobody need ask


class Sessions:
    """Lives on the service's loop."""

    def __init__(
        self,
        service: Service,
        settings: SessionSettings,
        *,
        clock: Callable[[], float] = time.time,
    ):
        self._service = service
        self._settings = settings
        self._clock = clock
        self._turns = Turns(refuse=settings.session_busy == "refuse")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sessions")
        self._store: Store | None = None
        self._writes: set[asyncio.Future[None]] = set()
        self._sweeper: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Opens the store. Raises SetupError, one line with the remedy."""
        loop = asyncio.get_running_loop()
        self._store = await loop.run_in_executor(self._thread, Store, self._settings.data_dir)
        self._sweeper = asyncio.create_task(self._sweep_forever())

    async def close(self) -> None:
        """Waits for what is being written. Idempotent."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.wait([self._sweeper])
            self._sweeper = None
        while self._writes:
            await asyncio.wait(self._writes)
        if self._store is not None:
            closed = self._run(Store.close)
            self._store = None
            await closed
        self._thread.shutdown(wait=False)

    def new_id(self) -> int:
        """A free session id for a client that gave none (-1)."""
        return secrets.randbits(52) + 1  # JavaScript's numbers are exact so far

    # --- calls ------------------------------------------------------------------------

    async def turn(self, key: SessionKey, request: GenerateRequest, *, keep: bool) -> Turn:
        """Waits for the session's earlier calls, in order, then starts the answer to
        `request.messages` (or `request.text`) after what the session holds; a session that does
        not exist begins. `keep` False: the session ends with this turn.

        Raises SessionBusy (it is being answered and `session_busy` says refuse; or it was ended
        while this waited), Overloaded (8 wait already), SessionLost (it was forgotten: told
        once, the next call begins anew), SessionFull (no room for an answer: nothing changed,
        or, without `keep`, the session is ended), and whatever `Service.generate` raises.
        A caller cancelled while it waits leaves the queue."""
        slot = await self._turns.enter(key)
        try:
            _, line = await self._load(slot, tell_lost=keep)
            new = lines.new_messages(line, request)
            transcript = Transcript()
            try:
                generation = await self._service.generate(
                    lines.extended(request, key, line, new), transcript
                )
            except PromptTooLong as error:
                if not keep and not slot.ended:
                    await asyncio.shield(self._write(_delete(key)))
                raise _full(error, line) from None
        except BaseException:
            self._turns.leave(slot)
            raise
        turn = Turn(generation, line.num_tokens)
        slot.generation = generation
        keeping = partial(lines.entries, line, new, transcript) if keep else None
        generation.on_ended(partial(self._on_ended, slot, turn, keeping))
        if slot.cancelled or slot.ended:  # while it was being prepared
            generation.abort()
        slot.check()
        return turn

    async def append(self, key: SessionKey, messages: Sequence[dict[str, Any]]) -> int:
        """Adds messages without an answer (a client replays a history with a budget of 0).
        Waits its turn. Returns the tokens that were in the session before."""
        normalise_messages(messages, join_parts=False, developer=True)  # refuses what is none
        slot = await self._turns.enter(key)
        try:
            text, line = await self._load(slot, tell_lost=True)
            new = lines.not_repeated(line, messages)
            whole = [*line.messages, *new]
            try:
                num_chars = sum([len(str(message["content"])) for message in whole])
                text.check_length(GenerateRequest(messages=whole), num_chars)
            except PromptTooLong as error:
                raise _full(error, line) from None
            written = self._write(self._adding(key, partial(list, map(Entry, new))))
            written.add_done_callback(lambda _: self._turns.leave(slot))
        except BaseException:
            self._turns.leave(slot)
            raise
        await asyncio.shield(written)
        return line.num_tokens

    def cancel(self, key: SessionKey) -> bool:
        """Stops the session's running answer, at once and without queueing; what was said so
        far stays in the session. Says whether there was one."""
        slot = self._turns.current(key)
        num_stopped = 0
        with suppress(ValueError):  # whatever route made them
            num_stopped = self._service.abort_session(key.owner, int(key.id))
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
        slot = self._turns.end(key)
        deleted = self._write(_delete(key))  # after what is being written now
        if slot is not None and slot.generation is not None:
            slot.generation.abort()
        await asyncio.shield(deleted)

    async def sweep(self) -> None:
        """Forgets what is too old. Raises StoreError."""
        now, busy = self._clock(), self._turns.busy

        def work(store: Store) -> None:
            self._expire(store, busy, now)
            store.drop_lost(LOST_PER_SESSION * self._settings.max_sessions)

        await self._run(work)

    # --- the parts of a turn ----------------------------------------------------------

    async def _load(self, slot: Slot, *, tell_lost: bool) -> tuple[ModelText, Line]:
        """What the session holds, told in the tokens of the model that is served now."""
        key, now = slot.key, self._clock()
        text = await self._service.model_text()
        busy = self._turns.busy - {key}

        def work(store: Store) -> Line:
            self._expire(store, busy, now)
            reason = store.take_lost(key)
            if reason is not None and tell_lost:
                raise SessionLost(
                    f"session {key.id} was forgotten: {reason}; the next call begins it anew"
                )
            return store.load(key, text.text_key)

        line = await self._run(work)
        slot.check()
        return text, line

    def _on_ended(
        self,
        slot: Slot,
        turn: Turn,
        keeping: Callable[[], list[Entry]] | None,
        outcome: Done | EngineError,
    ) -> None:
        """Called by the generation, perhaps in a task that is being cancelled."""
        if slot.ended or isinstance(outcome, EngineError):  # nothing of it is kept
            self._turns.leave(slot)
            turn._settle(None)
            return
        written = self._write(
            _delete(slot.key) if keeping is None else self._adding(slot.key, keeping)
        )

        def on_written(written: asyncio.Future[None]) -> None:
            self._turns.leave(slot)
            turn._settle(written)

        written.add_done_callback(on_written)

    def _adding(
        self, key: SessionKey, entries: Callable[[], list[Entry]]
    ) -> Callable[[Store], None]:
        now, busy = self._clock(), self._turns.busy | {key}

        def work(store: Store) -> None:
            store.add(key, entries(), now)
            self._make_room(store, busy, now)

        return work

    def _expire(self, store: Store, busy: frozenset[SessionKey], now: float) -> None:
        ttl_s = self._settings.session_ttl_s
        store.expire(now - ttl_s, f"it was not used for {ttl_s:g} s", busy, now)

    def _make_room(self, store: Store, busy: frozenset[SessionKey], now: float) -> None:
        num_sessions, num_tokens = self._settings.max_sessions, self._settings.max_session_tokens
        reason = "it made room for others, which were used later"
        try:
            store.make_room(num_sessions, num_tokens, reason, busy, now)
        except StoreError as error:  # what was to be kept is
            log.warning("no session could make room: %s", error)

    # --- the store's thread -----------------------------------------------------------

    def _run(self, work: Callable[[Store], T]) -> asyncio.Future[T]:
        """Runs on the store's thread, in the order of the calls."""
        loop = asyncio.get_running_loop()
        if self._store is None:
            closed: asyncio.Future[T] = loop.create_future()
            closed.set_exception(StoreError("conversations are not kept: the server is stopping"))
            return closed
        return loop.run_in_executor(self._thread, work, self._store)

    def _write(self, work: Callable[[Store], None]) -> asyncio.Future[None]:
        """Done whoever waits for it: `close` does."""
        written = self._run(work)
        self._writes.add(written)
        written.add_done_callback(self._on_written)
        return written

    def _on_written(self, written: asyncio.Future[None]) -> None:
        self._writes.discard(written)
        if (error := written.exception()) is not None:
            log.error("a turn was not kept: %s", error)

    async def _sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            try:
                await self.sweep()
            except StoreError as error:
                log.warning("old sessions could not be forgotten: %s", error)


def _delete(key: SessionKey) -> Callable[[Store], None]:
    return lambda store: store.delete(key)


def _full(error: PromptTooLong, line: Line) -> SessionFull:
    num_tokens = max(error.num_tokens, line.num_tokens + 1)
    return SessionFull(error.message, num_tokens=num_tokens, history_tokens=line.num_tokens)
