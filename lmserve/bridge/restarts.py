"""When a dead engine is started again."""

from __future__ import annotations

from collections import deque


class Restarts:
    """How long to wait before the next start, and when to give up."""

    FIRST_PAUSE_S = 0.2
    LONGEST_PAUSE_S = 10.0
    MAX_DEATHS = 5  # within WINDOW_S, without one completed step
    WINDOW_S = 60.0

    def __init__(self) -> None:
        self._deaths: deque[float] = deque()
        self._pause_s = self.FIRST_PAUSE_S

    def worked(self) -> None:
        """The engine completed a step: what was before is forgiven."""
        if self._deaths:
            self._deaths.clear()
            self._pause_s = self.FIRST_PAUSE_S

    def died(self, now: float) -> float | None:
        """Seconds to wait before the next start; None to give up."""
        self._deaths.append(now)
        while self._deaths[0] < now - self.WINDOW_S:
            self._deaths.popleft()
        if len(self._deaths) >= self.MAX_DEATHS:
            return None
        pause_s = self._pause_s
        self._pause_s = min(2 * pause_s, self.LONGEST_PAUSE_S)
        return pause_s
