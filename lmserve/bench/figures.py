"""Of many measurements, the few numbers that are told."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

PERCENTS = (50, 90, 95, 99)


def median(values: Sequence[float]) -> float:
    """0 where there are none."""
    return statistics.median(values) if values else 0.0


def percentile(values: Sequence[float], percent: float) -> float:
    """The least value that so many of a hundred do not exceed: one that was measured. 0 where there
    are none."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def percentiles(
    values: Sequence[float], percents: Sequence[float] = PERCENTS, *, scale: float = 1.0
) -> dict[str, float]:
    """`p50`, … and the mean, each times `scale` (1e3: from seconds to milliseconds)."""
    found = {f"p{percent:g}": percentile(values, percent) * scale for percent in percents}
    return found | {"mean": (statistics.fmean(values) if values else 0.0) * scale}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest, and how far apart those are as a share of the median."""
    if not values:
        return {"median": 0.0, "least": 0.0, "greatest": 0.0, "spread": 0.0}
    middle, least, greatest = median(values), min(values), max(values)
    apart = (greatest - least) / middle if middle else 0.0
    return {"median": middle, "least": least, "greatest": greatest, "spread": apart}
