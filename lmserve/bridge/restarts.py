"""When a dead engine is started again.

One that cannot be loaded any more is given up after a few trials. One that was ready before it
died is not: somebody may send again and again what kills it. It is started again at once while
deaths are few, and ever later where they are many in a minute.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable


class Restarts:
    """How long to wait before the next start, and when to give up."""

    FIRST_PAUSE_S = 0.2
    MAX_PAUSE_S = 30.0
    MAX_DEATHS = 5  # since one was ready
    RECENT_S = 60.0
    MAX_RECENT = 8  # deaths of that time, after which each pause is twice as long

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._num_deaths = 0  # since one was ready
        self._recent: deque[float] = deque()  # deaths

    def ready(self) -> None:
        self._num_deaths = 0

    @property
    def num_recent(self) -> int:
        """Deaths of the last minute."""
        while self._recent and self._clock() - self._recent[0] >= self.RECENT_S:
            self._recent.popleft()
        return len(self._recent)

    def died(self) -> float | None:
        """Seconds to wait before the next start; None to give up."""
        self._recent.append(self._clock())
        self._num_deaths += 1
        if self._num_deaths >= self.MAX_DEATHS:
            return None
        num_doublings = max(self._num_deaths - 1, self.num_recent - self.MAX_RECENT)
        return float(min(self.MAX_PAUSE_S, self.FIRST_PAUSE_S * 2.0**num_doublings))
