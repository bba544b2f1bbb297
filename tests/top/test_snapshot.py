"""Rates and quantiles between two looks at /metrics."""

from __future__ import annotations

import pytest

from lmserve.top.snapshot import Snapshot, Window
from lmserve.top.words import duration, memory, number, percent, spark, uptime

BEFORE = """# TYPE asked counter
asked_total{who="a"} 10
asked_total{who="b"} 5
# TYPE took histogram
took_bucket{le="1.0"} 10
took_bucket{le="2.0"} 10
took_bucket{le="+Inf"} 10
took_count 10
took_sum 3
# TYPE open gauge
open{who="a"} 3
"""
NOW = """# TYPE asked counter
asked_total{who="a"} 30
asked_total{who="b"} 2
# TYPE took histogram
took_bucket{le="1.0"} 15
took_bucket{le="2.0"} 20
took_bucket{le="+Inf"} 21
took_count 21
took_sum 3
# TYPE open gauge
open{who="a"} 1
"""


@pytest.fixture
def window() -> Window:
    return Window(Snapshot.of(BEFORE, 100.0), Snapshot.of(NOW, 102.0))


def test_rates(window: Window) -> None:
    assert window.rate("asked_total", who="a") == 10
    assert window.rates_by("asked_total", "who") == {"a": 10, "b": 1}  # b began anew
    assert window.rate("nothing") == 0
    assert window.now.value("open") == 1
    assert window.share("nothing", "nothing") is None


def test_quantiles(window: Window) -> None:
    assert window.quantile("took", 5 / 11) == pytest.approx(1.0)
    assert window.quantile("took", 0.25) == pytest.approx(0.55)
    assert window.quantile("took", 7.5 / 11) == pytest.approx(1.5)
    assert window.quantile("took", 0.99) == 2.0  # beyond the last bound
    assert window.quantile("nothing", 0.5) is None
    still = Window(window.now, window.now)
    assert still.quantile("took", 0.5) is None


def test_a_server_that_was_started_again() -> None:
    again = Window(Snapshot.of(NOW, 1.0), Snapshot.of(BEFORE, 2.0))
    assert again.quantile("took", 0.5) == pytest.approx(0.5)
    assert again.added("asked_total") == 15


def test_what_is_no_metrics() -> None:
    with pytest.raises(ValueError, match=r"."):
        Snapshot.of("<html>{", 0.0)


def test_words() -> None:
    assert [duration(s) for s in (None, 0.00042, 0.0347, 0.25, 2.345, 1200.0)] == [
        "–", "0.4 ms", "35 ms", "250 ms", "2.35 s", "20 min",
    ]  # fmt: skip
    assert [number(n) for n in (0, 7, 7.26, 1456, 14560, 2.5e6, 3e9)] == [
        "0", "7", "7.3", "1456", "14.6k", "2.5M", "3G",
    ]  # fmt: skip
    assert [uptime(s) for s in (5, 3700, 90000)] == ["0 min 5 s", "1 h 1 min", "1 d 1 h"]
    assert [memory(n) for n in (2**20, 3 * 2**30)] == ["1 MiB", "3.00 GiB"]
    assert percent(0.125) == "12 %"
    assert spark([9.0, 0.0, 1.0, 2.0], 3) == "▁▄█"
    assert spark([0.0], 5) == "▁"
