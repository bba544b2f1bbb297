"""Who waits for the engine, for how long yet, and when to come back.

All of it follows from when requests came, began and ended; nothing is done a token. The measure is
how long the engine takes to begin with one more request while some wait for it.

The engine shares its tokens among API keys (`lmserve.engine.shares`); here requests are counted,
as if all were alike: one of each key a round, of a key of weight 2 two. Where a key's requests are
longer than others', it waits longer than is told, and the others less.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, insort
from collections.abc import Callable

from lmserve.bridge.handle import EngineHandle
from lmserve.messages import NOBODY, EngineInfo, Tenant

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


Rank = tuple[int, float, float]  # about the engine's order: priority, round, arrival


class Place:
    """Of one request, from its submission to its end."""

    __slots__ = ("begun", "ended", "rank")

    def __init__(self, rank: Rank):
        self.rank = rank
        self.begun = False
        self.ended = False


class Waiting:
    """Lives on the service's loop."""

    def __init__(self, handle: EngineHandle, clock: Callable[[], float], *, fair: bool = True):
        self._handle = handle
        self._clock = clock
        self._fair = fair
        self._numbers = itertools.count()
        self._ranks: list[Rank] = []  # of those that wait, in order
        self._round = 0.0  # of the one that began last
        self._rounds: dict[str, float] = {}  # the next of each key; what is past needs no entry
        self._num_running = 0
        self._interval = Mean()  # between two that begin, while others wait
        self._since: float | None = None  # when the last began; None where nobody waited then
        self._engine: EngineInfo | None = None  # that had begun with it

    # --- requests come, begin and end -------------------------------------------------

    def enter(self, priority: int, tenant: Tenant = NOBODY) -> Place:
        place = Place((priority, self._next_round(tenant.name), next(self._numbers)))
        if self._fair:
            self._rounds[tenant.name] = place.rank[1] + 1 / tenant.weight
        if not self._ranks and not self._num_free():
            self._since, self._engine = self._clock(), self._handle.info
        insort(self._ranks, place.rank)
        return place

    def _next_round(self, name: str) -> float:
        return max(self._round, self._rounds.get(name, 0.0))

    def begin(self, place: Place) -> None:
        """The engine has begun with it."""
        if place.begun or place.ended:
            return
        place.begun = True
        self._round = max(self._round, place.rank[1])
        self._remove(place)
        self._num_running += 1
        now, engine = self._clock(), self._handle.info
        if self._since is not None and self._engine is engine:  # else it had to be started
            self._interval.add(now - self._since)
        self._since = now if self._ranks and not self._num_free() else None
        self._engine = engine

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
        if not self._ranks:
            self._round = 0.0
            self._rounds.clear()

    # --- what to tell -----------------------------------------------------------------

    def position(self, place: Place) -> tuple[int, float | None] | None:
        """How many come before it, and how long until it begins, where that is known; None: it
        waits no more."""
        if place.begun or place.ended:
            return None
        num_before = bisect_left(self._ranks, place.rank)
        return num_before, self._estimate_s(num_before)

    def estimate_s(self, priority: int, owner: str = "") -> float | None:
        """How long one that came now would wait. None: nobody knows yet."""
        rank = (priority, self._next_round(owner), math.inf)
        return self._estimate_s(bisect_left(self._ranks, rank))

    def retry_after_s(self) -> int:
        """Until one more is begun with, and its place in the queue is free."""
        health = self._handle.health()
        return retry_after_s(self._interval.value) if health.ok else health.retry_after_s

    def _estimate_s(self, num_before: int) -> float | None:
        if not self._handle.health().ok:
            return None
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
        if info is None or not self._handle.health().ok:
            return 0
        if self._ranks and self._num_running and self._handle.stats.num_waiting:
            return 0  # for want of blocks, where not of places
        return max(0, info.max_batch_size - self._num_running)
