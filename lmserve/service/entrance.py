"""Who may come in, until when, and whether all have left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from lmserve.errors import EngineUnavailable, Overloaded, RateLimited
from lmserve.service import limits
from lmserve.service.admission import Admission, Ticket
from lmserve.service.metrics import Metrics
from lmserve.types import GenerateRequest


class Entrance:
    """Lives on the service's loop."""

    def __init__(self, admission: Admission, metrics: Metrics):
        self._admission = admission
        self._metrics = metrics
        self._idle = asyncio.Event()
        self._idle.set()
        self.is_shut = False
        self._ends_in_s: Callable[[], int] = lambda: 1

    def shut(self, ends_in_s: Callable[[], int] | None = None) -> None:
        """Nobody new comes in; in so many seconds the server is gone, and another may be there."""
        self.is_shut = True
        self._ends_in_s = ends_in_s or self._ends_in_s

    def check_open(self) -> None:
        if self.is_shut:
            raise EngineUnavailable(
                "the server is shutting down: ask another one",
                retry_after_s=max(1, self._ends_in_s()),
            )

    def enter(self, owner: str = "") -> Ticket:
        """Raises Overloaded, RateLimited, EngineUnavailable."""
        (ticket,) = self.enter_all(1, owner)
        return ticket

    def enter_all(self, num: int, owner: str = "") -> list[Ticket]:
        """So many or, where there is no room for all, none."""
        self.check_open()
        try:
            tickets = self._admission.enter(num, owner)
        except RateLimited as error:
            self._metrics.rejected(error.limit, owner)
            raise
        except Overloaded:
            self._metrics.rejected("requests", owner)
            raise
        self._idle.clear()
        return tickets

    @contextmanager
    def place(self, owner: str) -> Iterator[Ticket]:
        with self.places(1, owner) as (ticket,):
            yield ticket

    @contextmanager
    def places(self, num: int, owner: str) -> Iterator[list[Ticket]]:
        tickets = self.enter_all(num, owner)
        try:
            yield tickets
        finally:
            self.leave_all(tickets)

    def check_sum(self, requests: Sequence[GenerateRequest], num_tokens: int) -> None:
        """Of a call's prompts so far. Raises InvalidField where there is never room for them."""
        limits.check_sum(requests, num_tokens, self._admission.most_tokens(requests[0].owner))

    def add_tokens(
        self, requests: Sequence[GenerateRequest], prompts: Mapping[Ticket, int]
    ) -> None:
        """Counts a call's prompts, once their lengths are known: all of them or, where there is
        no room for all, none. Raises Overloaded, RateLimited, and InvalidField where there never
        is."""
        self.check_sum(requests, sum(prompts.values()))
        owner = requests[0].owner
        try:
            self._admission.add_tokens(prompts, several=len(requests) > 1)
        except RateLimited as error:
            self._metrics.rejected(error.limit, owner)
            raise
        except Overloaded:
            self._metrics.rejected("tokens", owner)
            raise

    def most_places(self, owner: str) -> int:
        """That it may have at once."""
        return self._admission.most_places(owner)

    def check_draft(self, owner: str) -> None:
        """Whether something may be run ahead. Raises as `enter` does."""
        self.check_open()
        self._admission.quotas.check(owner, 0)

    def spend(self, owner: str, num_tokens: int) -> None:
        """Of an answer that ended, or of what was run ahead."""
        self._admission.quotas.spend(owner, num_tokens)

    def leave(self, ticket: Ticket) -> None:
        """Idempotent. A place is kept as long as its thread works on."""
        if ticket.job is not None and not ticket.job.done():  # its client left
            loop = asyncio.get_running_loop()

            def on_done(_job: object) -> None:
                with suppress(RuntimeError):  # the loop is closed
                    loop.call_soon_threadsafe(self.leave, ticket)

            ticket.job.add_done_callback(on_done)
            return
        ticket.release()
        if not self._admission.num_requests:
            self._idle.set()

    def leave_all(self, tickets: Sequence[Ticket]) -> None:
        for ticket in tickets:
            self.leave(ticket)

    def refund(self, tickets: Sequence[Ticket]) -> None:
        """Of a call that was counted, and of which nothing was run after all."""
        for ticket in tickets:
            self.spend(ticket.owner, -ticket.num_tokens)

    async def wait_idle(self, timeout_s: float) -> bool:
        """Says whether all left in time."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            return False
        return True
