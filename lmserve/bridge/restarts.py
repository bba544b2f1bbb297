"""When a dead engine is started again."""

from __future__ import annotations


class Restarts:
    """How long to wait before the next start, and when to give up."""

    FIRST_PAUSE_S = 0.2
    MAX_DEATHS = 5  # without one completed step

    def __init__(self) -> None:
        self._num_deaths = 0

    def worked(self) -> None:
        """The engine completed a step: what was before is forgiven."""
        self._num_deaths = 0

    def died(self) -> float | None:
        """Seconds to wait before the next start; None to give up."""
        self._num_deaths += 1
        if self._num_deaths >= self.MAX_DEATHS:
            return None
        return self.FIRST_PAUSE_S * 2.0 ** (self._num_deaths - 1)
