"""One turn at a time in each session; those who wait are served in order."""

from __future__ import annotations

import asyncio
from collections import ChainMap, deque
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

from lmserve.errors import Overloaded, SessionBusy
from lmserve.service.generation import Generation
from lmserve.service.sessions.tree import Node
from lmserve.service.store.store import SessionKey
from lmserve.service.waiting import Mean, retry_after_s

MAX_WAITING = 8  # calls for one session, beside the one it is in


class Slot:
    """The turn that a session is in, held from `enter` to `leave`."""

    __slots__ = ("cancelled", "ended", "entered_s", "generation", "key")

    def __init__(self, key: SessionKey):
        self.key = key
        self.entered_s = asyncio.get_running_loop().time()
        self.generation: Generation | None = None  # once it runs
        self.cancelled = False  # before it ran
        self.ended = False  # with its session: nothing of it is kept

    def check(self) -> None:
        if self.ended:
            raise _was_ended(self.key)


class Turn:
    """One answer within a session. Take a lease of `generation` before the next await."""

    def __init__(self, generation: Generation, history_tokens: int):
        self.generation = generation
        self.history_tokens = history_tokens  # in the session before this turn
        self.input_ids: list[int] = []  # of the messages stored for it; once settled
        self.answer: Node | None = None  # None where it was not kept; once settled
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

    def settle(self, written: asyncio.Future[Sequence[Node]] | None) -> None:
        """`written`: the messages that were kept."""
        error = None if written is None else written.exception()
        if error is None:
            if written is not None and (kept := written.result()):
                *new, self.answer = kept
                self.input_ids = [node.id for node in new]
            self._settled.set_result(None)
        else:
            self._settled.set_exception(error)
            self._settled.exception()  # nobody need ask


class Running(Protocol):
    """An answer that is being made in a session, in its slot or beside it."""

    def stop(self) -> None:
        """What was said is kept."""

    def drop(self) -> None:
        """Its session goes, and it with it."""


class Turns:
    def __init__(self, *, refuse: bool):
        self._refuse = refuse  # rather than wait
        self._length = Mean()  # of a turn, in seconds
        self._running: dict[SessionKey, set[Running]] = {}
        self._slots: dict[SessionKey, Slot] = {}
        self._waiters: dict[SessionKey, deque[asyncio.Future[Slot]]] = {}
        #: The sessions being answered: a view, so that a look at it costs the same for any number.
        self.busy = ChainMap[SessionKey, Any](self._slots, self._running)
        #: Called with a session that goes.
        self.on_end: Callable[[SessionKey], object] = lambda _: None

    def current(self, key: SessionKey) -> Slot | None:
        return self._slots.get(key)

    def running(self, key: SessionKey) -> Collection[Running]:
        return tuple(self._running.get(key, ()))

    def started(self, key: SessionKey, answer: Running) -> None:
        self._running.setdefault(key, set()).add(answer)

    def ended(self, key: SessionKey, answer: Running) -> None:
        """Idempotent."""
        answers = self._running.get(key, set())
        answers.discard(answer)
        if not answers:
            self._running.pop(key, None)

    async def enter(self, key: SessionKey) -> Slot:
        """Waits for the turns before. A caller cancelled meanwhile leaves the queue. Raises
        SessionBusy or Overloaded."""
        if key not in self._slots:
            slot = self._slots[key] = Slot(key)
            return slot
        if self._refuse:
            raise SessionBusy(
                f"session {key.id} is being answered: wait for the end of that answer, or cancel it"
            )
        waiters = self._waiters.setdefault(key, deque())
        if len(waiters) >= MAX_WAITING:
            raise Overloaded(
                f"{len(waiters)} calls wait for session {key.id} already: let them be answered",
                retry_after_s=retry_after_s(self._length.value),
            )
        waiter: asyncio.Future[Slot] = asyncio.get_running_loop().create_future()
        waiters.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            self._withdraw(waiter, waiters)
            raise

    def _withdraw(self, waiter: asyncio.Future[Slot], waiters: deque[asyncio.Future[Slot]]) -> None:
        """Its caller is gone; perhaps it had its turn, or a refusal, but did not know yet."""
        if waiter.cancelled():
            if waiter in waiters:
                waiters.remove(waiter)
        elif waiter.exception() is None:
            self.leave(waiter.result())

    def leave(self, slot: Slot) -> None:
        """The next one's turn. Idempotent."""
        if self._slots.get(slot.key) is not slot:
            return  # the session was ended meanwhile
        self._length.add(asyncio.get_running_loop().time() - slot.entered_s)
        waiters = self._waiters.get(slot.key, ())
        while waiters:
            waiter = waiters.popleft()
            if not waiter.done():
                self._slots[slot.key] = following = Slot(slot.key)
                waiter.set_result(following)
                return
        del self._slots[slot.key]
        self._waiters.pop(slot.key, None)

    def end(self, key: SessionKey) -> Slot | None:
        """Nobody is in the session any more: those who wait are refused, and whoever was in it
        (returned) keeps nothing; answers beside it neither."""
        for answer in self.running(key):
            answer.drop()
        self.on_end(key)
        slot = self._slots.pop(key, None)
        if slot is not None:
            slot.ended = True
        for waiter in self._waiters.pop(key, ()):
            if not waiter.done():
                waiter.set_exception(_was_ended(key))
        return slot


def _was_ended(key: SessionKey) -> SessionBusy:
    return SessionBusy(f"session {key.id} was ended while this call waited: call again to begin it")
