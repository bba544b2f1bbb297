"""Input taken on while an answer is made: on disk at once, said as soon as the answer has ended."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmserve.errors import InvalidField, LmserveError, Overloaded, StoreError
from lmserve.service.answers.log import AnswerLog
from lmserve.service.answers.records import (
    Notice,
    SteerApplied,
    Steered,
    SteerFailed,
    SteerPending,
)
from lmserve.service.sessions.outputs import no_call, unmet
from lmserve.service.sessions.tree import check_messages
from lmserve.service.store import answers as store_answers
from lmserve.service.store.keeper import Keeper
from lmserve.service.store.records import Steer, said_of
from lmserve.service.store.rows import to_json

MAX_STEERS = 8  # that wait for one answer's end

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Applied:
    """What an answer goes on with, after another."""

    response: str  # that other
    token_index: int  # tokens of it that were kept
    steers: Sequence[Steer]

    @property
    def messages(self) -> list[dict[str, Any]]:
        return said_of(self.steers)

    def notices(self, successor: str) -> list[SteerApplied]:
        return [
            SteerApplied(steer.id, self.response, successor, self.token_index)
            for steer in self.steers
        ]


class Steering:
    """Of one answer."""

    def __init__(self, response: str, keeper: Keeper, log: AnswerLog):
        self._response = response
        self._keeper = keeper
        self._log = log
        self.steers: list[Steer] = []
        self._writes: set[asyncio.Future[None]] = set()

    async def take(
        self,
        messages: Sequence[Mapping[str, Any]],
        given: Any,
        on_taken: Callable[[Steered], None],
        calls: Collection[str] = (),
    ) -> str:
        """Returns its id once it is on disk. `on_taken` is called before anything else can
        happen; `calls`: those of the answer so far. Raises InvalidField, Overloaded, StoreError."""
        _check(messages)
        self._check_outputs(messages, calls)
        if len(self.steers) >= MAX_STEERS:
            raise Overloaded(
                f"{len(self.steers)} inputs wait for {self._response} to stop: let them be said"
            )
        steer = Steer(f"steer_{secrets.token_hex(16)}", messages, given)
        self.steers.append(steer)
        steers = tuple(self.steers)
        written = self._keeper.write(
            lambda store: store_answers.set_steers(store, self._response, steers)
        )
        self._writes.add(written)

        def on_written(written: asyncio.Future[None]) -> None:
            self._writes.discard(written)
            if written.exception() is None:
                on_taken(Steered(steer.id, self._response))
            else:
                self.steers.remove(steer)

        written.add_done_callback(on_written)
        await asyncio.shield(written)
        return steer.id

    def _check_outputs(self, messages: Sequence[Mapping[str, Any]], calls: Collection[str]) -> None:
        """Refuses what no call of the answer waits for."""
        given = [message.get("tool_call_id") for message in said_of(self.steers)]
        for message in messages:
            id = message.get("tool_call_id")
            if message["role"] == "tool":
                if id not in calls or id in given:
                    raise no_call(id)
                given.append(id)

    async def settled(self) -> None:
        """Waits for what is being written."""
        while self._writes:
            await asyncio.wait(self._writes)

    def applied(self, token_index: int) -> Applied:
        return Applied(self._response, token_index, tuple(self.steers))

    async def waits(self, answer: Mapping[str, Any]) -> bool:
        """Whether the answer, which has ended, made calls whose outputs must come first: that is
        told."""
        notices = pending_notices(self._response, answer, self.steers)
        if notices:
            await self._tell(notices)
        return bool(notices)

    async def refuse(self, error: LmserveError) -> None:
        """They will not be said: that is told last."""
        steers, self.steers = self.steers, []
        code, text, id = error.code or error.type, error.message, self._response
        try:
            await self._keeper.write(lambda store: store_answers.set_steers(store, id, ()))
        except StoreError as failure:
            log.error("what could not be said stays on disk: %s", failure)
            return
        await self._tell([SteerFailed(s.id, id, code, text, s.given) for s in steers])

    async def _tell(self, notices: Sequence[Notice]) -> None:
        """After the answer's end."""
        for notice in notices:
            self._log.notice(notice)
        chunk, id = await self._log.rest(), self._response
        try:
            await self._keeper.write(lambda store: store_answers.add_chunk(store, id, chunk))
        except StoreError as failure:
            log.error("what became of a steer was not told to the disk: %s", failure)


def pending_notices(
    response: str, answer: Mapping[str, Any], steers: Sequence[Steer]
) -> list[SteerPending]:
    """None where the answer's calls need no more than these bring."""
    calls = unmet(answer, said_of(steers))
    return [SteerPending(steer.id, response, calls) for steer in steers] if calls else []


def _check(messages: Sequence[Mapping[str, Any]]) -> None:
    check_messages(messages)
    if not messages:
        raise InvalidField("messages is empty: give at least one message", param="messages")
    for index, message in enumerate(messages):
        role = str(message.get("role"))
        if role not in ("user", "tool"):
            raise InvalidField(
                f"messages[{index}].role is {role[:50]!r}: an answer is steered by user or tool "
                "messages",
                param=f"messages[{index}].role",
            )
        to_json(dict(message), f"messages[{index}]")
