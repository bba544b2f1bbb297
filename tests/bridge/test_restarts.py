"""When a dead engine is started again."""

from __future__ import annotations

import pytest

from lmserve.bridge.restarts import Restarts


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_pauses_double_and_the_fifth_death_is_the_last(clock: Clock) -> None:
    restarts = Restarts(clock)
    assert [restarts.died() for _ in range(5)] == [0.2, 0.4, 0.8, 1.6, None]


def test_one_that_could_be_loaded_is_not_given_up(clock: Clock) -> None:
    restarts = Restarts(clock)
    for _ in range(4):
        restarts.died()
    clock.now += 60.0
    pauses = []
    for _ in range(20):
        restarts.ready()
        clock.now += 10.0
        pauses.append(restarts.died())
    assert pauses == [0.2] * 20


def test_many_deaths_within_a_minute_make_it_pause_but_not_give_up(clock: Clock) -> None:
    restarts = Restarts(clock)
    pauses = []
    for _ in range(40):  # somebody sends again and again what kills it
        restarts.ready()
        clock.now += 1.0
        pause_s = restarts.died()
        assert pause_s is not None
        pauses.append(pause_s)
        clock.now += pause_s
    assert pauses[:9] == [0.2] * 8 + [0.4]
    assert max(pauses) > 1.0
    assert sum(pauses) < 20 * 30.0  # it settles where it has few deaths a minute
    assert restarts.num_recent <= 15
    clock.now += 60.0
    assert restarts.num_recent == 0
    restarts.ready()
    assert restarts.died() == 0.2
