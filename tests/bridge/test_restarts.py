"""When a dead engine is started again, with the time passed in."""

from __future__ import annotations

from lmserve.bridge.restarts import Restarts


def test_pauses_double_up_to_the_longest() -> None:
    restarts = Restarts()
    pauses = [restarts.died(100.0 * death) for death in range(8)]
    assert pauses == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]


def test_five_deaths_in_a_minute_are_enough() -> None:
    restarts = Restarts()
    assert all(restarts.died(now) is not None for now in (0.0, 10.0, 20.0, 30.0))
    assert restarts.died(59.0) is None


def test_deaths_over_a_minute_ago_do_not_count() -> None:
    restarts = Restarts()
    for now in (0.0, 10.0, 20.0, 30.0):
        restarts.died(now)
    assert restarts.died(61.0) is not None


def test_a_completed_step_forgives() -> None:
    restarts = Restarts()
    for now in (0.0, 1.0, 2.0, 3.0):
        restarts.died(now)
    restarts.worked()
    assert restarts.died(4.0) == 0.2
