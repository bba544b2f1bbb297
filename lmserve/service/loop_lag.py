"""How late the event loop is: whatever blocks it shows here."""

from __future__ import annotations

import asyncio

from lmserve.service.histogram import Histogram

EVERY_S = 0.25
_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class LoopLag:
    """One timer, from `start` to `stop`."""

    def __init__(self) -> None:
        self.histogram = Histogram(_BOUNDS)
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_at(loop.time() + EVERY_S, self._tick, loop)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        assert self._timer is not None
        self.histogram.add(max(0.0, loop.time() - self._timer.when()))
        self.start()
