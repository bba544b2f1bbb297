"""A histogram that costs one bisection an observation, read at scrape time."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from prometheus_client.metrics_core import HistogramMetricFamily


class Histogram:
    """One loop observes and reads: no lock."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]):
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def add(self, value: float, times: int = 1) -> None:
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def family(self, name: str, doc: str, model: str) -> HistogramMetricFamily:
        """The wire form: cumulative buckets."""
        buckets: list[tuple[str, float]] = []
        total = 0
        names = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        for bound, count in zip(names, self._counts, strict=True):
            total += count
            buckets.append((bound, total))
        family = HistogramMetricFamily(name, doc, labels=["model_name"])
        family.add_metric([model], buckets, self._sum)
        return family
