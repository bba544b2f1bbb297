"""Who may come in, until when, and whether all have left."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from lmserve.errors import EngineUnavailable, Overloaded
from lmserve.service.admission import Admission, Ticket
from lmserve.service.metrics import Metrics


class Entrance:
    """Lives on the service's loop."""

    def __init__(self, admission: Admission, metrics: Metrics):
        self._admission = admission
        self._metrics = metrics
        self._idle = asyncio.Event()
        self._idle.set()
        self.is_shut = False

    def shut(self) -> None:
        """Nobody new comes in."""
        self.is_shut = True

    def check_open(self) -> None:
        if self.is_shut:
            raise EngineUnavailable("the server is shutting down: ask another one")

    def enter(self) -> Ticket:
        """Raises Overloaded, EngineUnavailable."""
        self.check_open()
        try:
            ticket = self._admission.enter()
        except Overloaded:
            self._metrics.rejected("requests")
            raise
        self._idle.clear()
        return ticket

    def enter_all(self, num: int) -> list[Ticket]:
        """So many or, where there is no room for all, none."""
        tickets: list[Ticket] = []
        try:
            for _ in range(num):
                tickets.append(self.enter())  # noqa: PERF401  where one fails, the others are left
        except BaseException:
            self.leave_all(tickets)
            raise
        return tickets

    @contextmanager
    def place(self) -> Iterator[Ticket]:
        with self.places(1) as (ticket,):
            yield ticket

    @contextmanager
    def places(self, num: int) -> Iterator[list[Ticket]]:
        tickets = self.enter_all(num)
        try:
            yield tickets
        finally:
            self.leave_all(tickets)

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

    async def wait_idle(self, timeout_s: float) -> bool:
        """Says whether all left in time."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            return False
        return True
