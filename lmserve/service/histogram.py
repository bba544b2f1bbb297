"""A histogram that costs one bisection an observation, read at scrape time."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


class Histogram:
    """One loop observes and reads: no lock."""

    __slots__ = ("_bounds", "_counts", "sum")

    def __init__(self, bounds: Sequence[float]):
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self.sum = 0.0

    def add(self, value: float, times: int = 1) -> None:
        self._counts[bisect_left(self._bounds, value)] += times
        self.sum += value * times

    def buckets(self) -> list[tuple[str, float]]:
        """The wire form: each bound and how many were not above it."""
        buckets: list[tuple[str, float]] = []
        total = 0
        names = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        for bound, count in zip(names, self._counts, strict=True):
            total += count
            buckets.append((bound, total))
        return buckets
