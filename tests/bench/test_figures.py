from __future__ import annotations

import pytest

from lmserve.bench.figures import median, percentile, percentiles, spread
from lmserve.bench.table import table


def test_a_percentile_is_a_value_that_was_measured():
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [percentile(values, each) for each in (0, 20, 21, 50, 99, 100)] == [1, 1, 2, 3, 5, 5]
    assert percentile(range(1, 101), 95) == 95
    assert percentile([7.0], 50) == 7.0


def test_percentiles_have_names_and_a_scale():
    assert percentiles([0.001, 0.003], (50, 99.9), scale=1e3) == pytest.approx(
        {"p50": 1.0, "p99.9": 3.0, "mean": 2.0}
    )


def test_the_spread_is_a_share_of_the_median():
    assert spread([90, 110, 100]) == {
        "median": 100, "least": 90, "greatest": 110, "spread": pytest.approx(0.2)
    }  # fmt: skip


def test_of_nothing_there_is_nothing():
    assert (median([]), percentile([], 50)) == (0, 0)
    assert set(spread([]).values()) == set(percentiles([]).values()) == {0}


def test_a_table_aligns_numbers_to_the_right():
    shown = table(["name", "n", "x"], [["a", 1, 1234.5], ["bcdef", 20, None], ["", 3, "5 %"]])
    assert shown.splitlines() == [
        "| name  |  n |    x |",
        "| ----- | -: | ---: |",
        "| a     |  1 | 1234 |",
        "| bcdef | 20 |    - |",
        "|       |  3 |  5 % |",
    ]
    assert table(["a", "b"], []).splitlines() == ["| a | b |", "| - | - |"]
