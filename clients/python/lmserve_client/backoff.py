"""How long to wait before a connection is tried again."""

from __future__ import annotations

import random
import time

FIRST_S = 0.1
MOST_S = 5.0


class Backoff:
    """Of one outage at a time: longer waits, until the time allowed is over."""

    def __init__(self, within_s: float):
        self._within_s = within_s
        self.reset()

    def reset(self) -> None:
        """It works again."""
        self._began: float | None = None
        self._num_failures = 0

    def next(self) -> float | None:
        """After a failure: seconds to wait; None: it has been tried for long enough."""
        now = time.monotonic()
        if self._began is None:
            self._began = now
        if now - self._began > self._within_s:
            return None
        self._num_failures += 1
        if self._num_failures == 1:
            return 0.0  # most often the network has changed, and the server is there
        delay_s = min(MOST_S, FIRST_S * 2.0 ** min(self._num_failures - 2, 10))
        return delay_s * random.uniform(0.5, 1.0)  # not all clients of a server at once
