"""How sure a slope is: over made-up memory that grows, or does not."""

from __future__ import annotations

import random

import pytest

from bench.slope import block_means, quantile_95, slope

SECONDS = [float(second) for second in range(1800)]


def walk(source: random.Random, keep: float) -> list[float]:
    """Samples that have much in common with the one before."""
    value, values = 0.0, []
    for _ in SECONDS:
        value = keep * value + source.gauss(0, 0.2)
        values.append(500 + value)
    return values


@pytest.mark.parametrize("keep", [0.0, 0.9, 0.98])
def test_noise_is_seldom_called_growth(keep: float) -> None:
    found = [slope(SECONDS, walk(random.Random(seed), keep), 60.0) for seed in range(60)]
    assert sum(each.includes_zero for each in found) >= 52  # of 60; 57 are expected


def test_growth_is_found() -> None:
    noise = walk(random.Random(1), 0.9)
    grown = [value + 10 * second / 3600 for value, second in zip(noise, SECONDS, strict=True)]
    found = slope(SECONDS, grown, 60.0)
    assert found.low < 10 < found.high
    assert not found.includes_zero


def test_what_never_changes_has_no_slope() -> None:
    found = slope(SECONDS, [7.0] * len(SECONDS), 60.0)
    assert (found.per_hour, found.low, found.high, found.rho) == (0.0, 0.0, 0.0, 0.0)
    assert found.includes_zero


def test_a_block_that_is_not_whole_is_left_out() -> None:
    times, means = block_means([float(s) for s in range(25)], [1.0] * 20 + [9.0] * 5, 10.0)
    assert (times, means) == ([4.5, 14.5], [1.0, 1.0])


def test_too_short_a_time_tells_nothing() -> None:
    with pytest.raises(ValueError, match="four are the least"):
        slope(SECONDS[:100], [0.0] * 100, 60.0)


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.706), (3, 3.182), (4, 2.776), (10, 2.228), (28, 2.048), (1e9, 1.96)],
)
def test_quantiles_are_those_of_the_tables(freedom: float, quantile: float) -> None:
    assert quantile_95(freedom) == pytest.approx(quantile, rel=0.005)
