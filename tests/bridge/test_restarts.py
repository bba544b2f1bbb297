"""When a dead engine is started again."""

from __future__ import annotations

from lmserve.bridge.restarts import Restarts


def test_pauses_double_and_the_fifth_death_is_the_last() -> None:
    restarts = Restarts()
    assert [restarts.died() for _ in range(5)] == [0.2, 0.4, 0.8, 1.6, None]


def test_a_completed_step_forgives() -> None:
    restarts = Restarts()
    for _ in range(4):
        restarts.died()
    restarts.worked()
    assert restarts.died() == 0.2
