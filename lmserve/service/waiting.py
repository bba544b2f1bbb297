"""Who waits for the engine, for how long yet, and when to come back.

All of it follows from when requests came, began and ended; nothing is done a token. The measure is
how long the engine takes to begin with one more request while some wait for it.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, insort
from collections.abc import Callable

from lmserve.bridge.handle import EngineHandle

MAX_RETRY_S = 60
_MEMORY = 0.9  # of what was measured before, kept at each new measurement


class Mean:
    """Of what was seen lately."""

    def __init__(self) -> None:
        self._sum = 0.0
        self._weight = 0.0

    def add(self, value: float) -> None:
        self._sum = self._sum * _MEMORY + value
        self._weight = self._weight * _MEMORY + 1.0

    @property
    def value(self) -> float | None:
        return self._sum / self._weight if self._weight else None


def retry_after_s(wait_s: float | None) -> int:
    """Whole seconds for `Retry-After`, where it takes about so long."""
    return 1 if wait_s is None else min(MAX_RETRY_S, max(1, math.ceil(wait_s)))


class Place:
    """Of one request, from its submission to its end."""

    __slots__ = ("begun", "ended", "rank")

    def __init__(self, rank: tuple[int, int]):
        self.rank = rank  # the engine's order: priority, then arrival
        self.begun = False
        self.ended = False


class Waiting:
    """Lives on the service's loop."""

    def __init__(self, handle: EngineHandle, clock: Callable[[], float]):
        self._handle = handle
        self._clock = clock
        self._numbers = itertools.count()
        self._ranks: list[tuple[int, int]] = []  # of those that wait, in order
        self._num_running = 0
        self._interval = Mean()  # between two that begin, while others wait
        self._since: float | None = None  # when the last began; None where nobody waited then

    # --- requests come, begin and end -------------------------------------------------

    def enter(self, priority: int) -> Place:
        place = Place((priority, next(self._numbers)))
        if not self._ranks and not self._num_free():
            self._since = self._clock()
        insort(self._ranks, place.rank)
        return place

    def begin(self, place: Place) -> None:
        """The engine has begun with it."""
        if place.begun or place.ended:
            return
        place.begun = True
        self._remove(place)
        self._num_running += 1
        now = self._clock()
        if self._since is not None:
            self._interval.add(now - self._since)
        self._since = now if self._ranks and not self._num_free() else None

    def told(self, place: Place, begun: bool) -> None:
        """The engine has begun with it, or it ended before that."""
        if begun:
            self.begin(place)
        else:
            self.end(place)

    def end(self, place: Place) -> None:
        """Idempotent."""
        if place.ended:
            return
        place.ended = True
        if place.begun:
            self._num_running -= 1
        else:
            self._remove(place)
            if not self._ranks:
                self._since = None

    def _remove(self, place: Place) -> None:
        del self._ranks[bisect_left(self._ranks, place.rank)]

    # --- what to tell -----------------------------------------------------------------

    def position(self, place: Place) -> tuple[int, float | None] | None:
        """How many come before it, and how long until it begins; None: it waits no more."""
        if place.begun or place.ended:
            return None
        num_before = bisect_left(self._ranks, place.rank)
        return num_before, self._estimate_s(num_before)

    def estimate_s(self, priority: int) -> float | None:
        """How long one that came now would wait. None: nobody knows yet."""
        return self._estimate_s(bisect_left(self._ranks, (priority + 1, -1)))

    def retry_after_s(self) -> int:
        """Until one more is begun with, and its place in the queue is free."""
        return retry_after_s(self._interval.value)

    def _estimate_s(self, num_before: int) -> float | None:
        num_before -= self._num_free()
        if num_before < 0:
            return 0.0
        mean = self._interval.value
        if mean is None:
            return None
        passed = 0.0 if self._since is None else self._clock() - self._since
        return mean * (num_before + 1) - min(mean, passed)

    def _num_free(self) -> int:
        """Requests that the engine could begin with at once."""
        info = self._handle.info
        if info is None or (self._ranks and self._num_running and self._handle.stats.num_waiting):
            return 0  # for want of blocks, where not of places
        return max(0, info.max_batch_size - self._num_running)
