"""Who keeps an answer going."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self


class Leased(ABC):
    """What lives as long as somebody wants it. All of it is synchronous, so that it works inside
    a cancelled task."""

    def __init__(self) -> None:
        self._num_leases = 0
        self._claimant: asyncio.Task[object] | None = None

    @abstractmethod
    def _abandon(self) -> None:
        """Nobody wants it any more."""

    @contextmanager
    def lease(self) -> Iterator[Self]:
        """Keeps it going. Without an await between its making and this, it is never unowned."""
        self._forget_claimant()
        self._num_leases += 1
        try:
            yield self
        finally:
            self._num_leases -= 1
            if self._num_leases == 0:
                self._abandon()

    def await_lease(self, claimant: asyncio.Task[object]) -> None:
        """Until the first lease, it lives as long as the task that asked for it."""
        self._claimant = claimant
        claimant.add_done_callback(self._on_claimant_done)

    def _on_claimant_done(self, _task: asyncio.Task[object]) -> None:
        self._claimant = None
        self._abandon()

    def _forget_claimant(self) -> None:
        if self._claimant is not None:
            self._claimant.remove_done_callback(self._on_claimant_done)
            self._claimant = None
