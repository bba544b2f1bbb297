"""Prompts that are run and not answered, many in a call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from lmserve.errors import EngineUnavailable
from lmserve.service import limits
from lmserve.service.deadlines import in_time
from lmserve.service.entrance import Entrance
from lmserve.service.generation import Generation
from lmserve.service.prepare import Preparer, Runs
from lmserve.service.work import Work
from lmserve.types import Done, GenerateRequest

MAX_TOGETHER = 32  # of one call; each has a place, as requests have


class Prompts:
    """Owned by the service, on its loop."""

    def __init__(
        self,
        preparer: Preparer,
        entrance: Entrance,
        start: Callable[[Work], Generation],
        clock: Callable[[], float],
    ):
        self._preparer = preparer
        self._entrance = entrance
        self._start = start
        self._clock = clock

    async def run(self, requests: Sequence[GenerateRequest], make: Runs) -> list[Generation]:
        """What `make` makes of them, each run to its end. All of it waits as the first request
        says, and has to be done in time. Raises as `Service.generate` does, and EngineError; then
        nothing of it runs."""
        limits.check_inputs(requests, len(requests))

        async def run() -> list[Generation]:
            owner = requests[0].owner
            num_places = min(MAX_TOGETHER, len(requests), self._entrance.most_places(owner))
            with self._entrance.places(num_places, owner) as tickets:
                works, num_tokens = await self._preparer.prompts(
                    requests, make, tickets[0], self._clock()
                )
                self._entrance.check_open()
                self._entrance.add_tokens(requests, {tickets[0]: num_tokens})
                return await self._finish_all(works, num_places)

        generations, _ = await in_time(requests[0], run, self._clock)
        return generations

    async def _finish_all(
        self, works: Sequence[Callable[[], Work]], num_together: int
    ) -> list[Generation]:
        finished: dict[int, Generation] = {}
        queue = iter(enumerate(works))

        async def lane() -> None:
            for index, work in queue:
                finished[index] = await _finish(self._start(work()))

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(num_together):
                    group.create_task(lane())
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [finished[index] for index in range(len(works))]


async def _finish(generation: Generation) -> Generation:
    with generation.lease():
        async for event in generation.events():
            if isinstance(event, Done) and event.finish_reason == "abort":
                raise EngineUnavailable("the request was ended before it was done: send it again")
    return generation
