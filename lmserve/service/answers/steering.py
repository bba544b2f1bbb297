"""Input taken on while an answer is made: on disk at once, said as soon as the answer has ended."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmserve.errors import InvalidField, Overloaded
from lmserve.service.answers.records import SteerApplied, Steered, SteerFailed
from lmserve.service.sessions.tree import check_messages
from lmserve.service.store import answers as store_answers
from lmserve.service.store.keeper import Keeper
from lmserve.service.store.records import Steer
from lmserve.service.store.rows import to_json

MAX_STEERS = 8  # that wait for one answer's end


@dataclass(frozen=True, slots=True)
class Applied:
    """What an answer goes on with, after another."""

    response: str  # that other
    token_index: int  # tokens of it that were kept
    steers: Sequence[Steer]

    @property
    def messages(self) -> list[dict[str, Any]]:
        return [dict(message) for steer in self.steers for message in steer.messages]

    def notices(self, successor: str) -> list[SteerApplied]:
        return [
            SteerApplied(steer.id, self.response, successor, self.token_index)
            for steer in self.steers
        ]


class Steering:
    """Of one answer."""

    def __init__(self, response: str, keeper: Keeper):
        self._response = response
        self._keeper = keeper
        self.steers: list[Steer] = []
        self._writes: set[asyncio.Future[None]] = set()

    async def take(
        self,
        messages: Sequence[Mapping[str, Any]],
        given: Any,
        on_taken: Callable[[Steered], None],
    ) -> str:
        """Returns its id once it is on disk. `on_taken` is called before anything else can
        happen. Raises InvalidField, Overloaded, StoreError."""
        _check(messages)
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

    async def settled(self) -> None:
        """Waits for what is being written."""
        while self._writes:
            await asyncio.wait(self._writes)

    def applied(self, token_index: int) -> Applied:
        return Applied(self._response, token_index, tuple(self.steers))

    async def refuse(self, code: str, message: str) -> list[SteerFailed]:
        """They will not be said. Raises StoreError."""
        steers, self.steers = self.steers, []
        await self._keeper.write(lambda store: store_answers.set_steers(store, self._response, ()))
        return [
            SteerFailed(steer.id, self._response, code, message, steer.given) for steer in steers
        ]


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
