"""Whether something grows: the slope of samples over time, and how sure that is.

Memory comes in steps and stays: samples a second apart say nearly the same, so that ordinary least
squares would be far too sure. Samples become means of minutes; the slope is that of the means; its
error is widened by what their residuals still have in common from one to the next (autocorrelation
of the first order, AR(1)), and its degrees of freedom are reduced by the same.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

Z95 = 1.959964  # of the normal distribution, two-sided
MAX_RHO = 0.95  # beyond it the samples are one


@dataclass(frozen=True, slots=True)
class Slope:
    per_hour: float
    low: float  # of the 95 % interval
    high: float
    num_blocks: int
    rho: float  # what neighbours have in common

    @property
    def includes_zero(self) -> bool:
        return self.low <= 0 <= self.high


def block_means(
    times_s: Sequence[float], values: Sequence[float], block_s: float
) -> tuple[list[float], list[float]]:
    """Of whole blocks; what remains at the end is left out."""
    blocks: dict[int, list[tuple[float, float]]] = {}
    for time_s, value in zip(times_s, values, strict=True):
        blocks.setdefault(int((time_s - times_s[0]) / block_s), []).append((time_s, value))
    whole = [blocks[index] for index in sorted(blocks)]
    if whole and (times_s[-1] - times_s[0]) % block_s < 0.9 * block_s:
        whole = whole[:-1] or whole
    means = [tuple(map(statistics.fmean, zip(*block, strict=True))) for block in whole]
    return [time for time, _ in means], [value for _, value in means]


def slope(times_s: Sequence[float], values: Sequence[float], block_s: float) -> Slope:
    """Needs at least four blocks. Raises ValueError."""
    x, y = block_means(times_s, values, block_s)
    num = len(x)
    if num < 4:
        raise ValueError(f"{num} blocks of {block_s:g} s: four are the least that tell a slope")
    hours = [each / 3600 for each in x]
    per_hour, start = statistics.linear_regression(hours, y)
    residuals = [b - (start + per_hour * a) for a, b in zip(hours, y, strict=True)]
    squares = sum(each * each for each in residuals)
    rho = 0.0
    if squares > 0:
        pairs = zip(residuals, residuals[1:], strict=False)
        rho = min(MAX_RHO, max(0.0, sum(a * b for a, b in pairs) / squares))
    widening = (1 + rho) / (1 - rho)
    freedom = max(1.0, num / widening - 2)
    spread = sum((each - statistics.fmean(hours)) ** 2 for each in hours)
    error = math.sqrt(squares / (num - 2) / spread * widening)
    half = quantile_95(freedom) * error
    return Slope(per_hour, per_hour - half, per_hour + half, num, rho)


def quantile_95(freedom: float) -> float:
    """Of Student's t, two-sided, by its expansion about the normal distribution's (within 0.5 %
    from four degrees on); fewer are told as tables have them."""
    if freedom < 4:
        table = (12.706, 4.303, 3.182, 2.776)
        return table[max(0, int(freedom) - 1)]
    z = Z95
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))
