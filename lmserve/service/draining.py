"""The end of a service: what runs may finish, until a deadline."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable

from lmserve.service.entrance import Entrance

TELL_EVERY_S = 3.0
_TOLD_WITHIN_S = 1.0  # readers of aborted answers get this long to take their last event

logger = logging.getLogger(__name__)


class Draining:
    """Begins once, and goes on as long as it has to: whoever calls `wait` waits for the same."""

    def __init__(self, entrance: Entrance, num_left: Callable[[], int], abort: Callable[[], None]):
        self._entrance = entrance
        self._num_left = num_left
        self._abort = abort
        self._until_s: float | None = None  # on the loop's clock
        self._work: asyncio.Task[None] | None = None

    @property
    def seconds_left(self) -> float | None:
        """Until what runs is ended; None before it has begun."""
        if self._until_s is None:
            return None
        return max(0.0, self._until_s - asyncio.get_running_loop().time())

    def __str__(self) -> str:
        answers, seconds_left = _answers(self._num_left()), self.seconds_left or 0.0
        return f"draining: {answers} left, {math.ceil(seconds_left)} s"

    async def wait(self, timeout_s: float) -> None:
        if self._work is None:
            self._until_s = asyncio.get_running_loop().time() + timeout_s
            self._entrance.shut(lambda: math.ceil(self.seconds_left or 0.0))
            self._work = asyncio.create_task(self._drain())
        await asyncio.shield(self._work)

    async def _drain(self) -> None:
        while left_s := self.seconds_left:
            if await self._entrance.wait_idle(min(left_s, TELL_EVERY_S)):
                return
            logger.info("%s", self)
        if num_left := self._num_left():
            logger.warning("ended, not done in time: %s", _answers(num_left))
        self._abort()
        await self._entrance.wait_idle(_TOLD_WITHIN_S)


def _answers(number: int) -> str:
    return f"{number} answer{'' if number == 1 else 's'}"
