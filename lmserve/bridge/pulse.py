"""Hearing whether an engine lives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from lmserve.settings import EngineSettings


class Pulse:
    """Once a beat: asks a silent engine whether it lives, and tells when it does not answer.

    Beats are counted besides seconds, so that a server whose own loop was held up does not call
    the engine stuck before it has read the answer."""

    def __init__(
        self,
        settings: EngineSettings,
        *,
        ask: Callable[[], None],
        on_stuck: Callable[[float], None],
        on_dead: Callable[[float], None],
    ):
        """`on_stuck` is called at each beat of a silence over `stuck_after_s`, `on_dead` at each
        of one over `kill_after_s`; both get its seconds."""
        self._beat_s = min(1.0, settings.stuck_after_s / 4)
        self._stuck_after_s = settings.stuck_after_s
        self._kill_after_s = settings.kill_after_s
        self._ask, self._on_stuck, self._on_dead = ask, on_stuck, on_dead
        self._heard_at = 0.0
        self._unheard_beats = 0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def silent_s(self) -> float:
        return max(0.0, asyncio.get_running_loop().time() - self._heard_at)

    def heard(self) -> None:
        self._heard_at = asyncio.get_running_loop().time()
        self._unheard_beats = 0

    def start(self) -> None:
        """For an engine that was just heard of; before, it need not answer."""
        self.stop()
        self._timer = asyncio.get_running_loop().call_later(self._beat_s, self._beat)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _beat(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._beat_s, self._beat)
        silent_s = self.silent_s
        if silent_s < self._beat_s / 2:
            return
        if not self._unheard_beats:
            self._ask()
        self._unheard_beats += 1
        if self._unheard_beats <= 2:
            return
        if silent_s > self._kill_after_s:
            self._on_dead(silent_s)
        elif silent_s > self._stuck_after_s:
            self._on_stuck(silent_s)
