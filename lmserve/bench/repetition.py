"""The same measurement several times; a time that other work disturbed does not count at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from lmserve.bench.machine import Load, LoadMeter

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Round(Generic[T_co]):
    result: T_co
    load: Load
    num_attempts: int


def measured(measure: Callable[[str], T], num_rounds: int, *, repeats: int) -> list[Round[T]]:
    """Of each round the least disturbed attempt (chosen by the load, never by the result): it is
    made again up to `repeats` times while other work disturbs it. `measure` is told a name that no
    other attempt has, for its seed."""
    return [_round(measure, number, repeats) for number in range(num_rounds)]


def _round(measure: Callable[[str], T], number: int, repeats: int) -> Round[T]:
    attempts: list[tuple[Load, T]] = []
    while not attempts or (attempts[-1][0].is_disturbed and len(attempts) <= repeats):
        meter = LoadMeter()
        result = measure(f"{number}/{len(attempts)}")
        attempts.append((meter.read(), result))
    load, result = min(attempts, key=lambda attempt: attempt[0].disturbance)
    return Round(result, load, len(attempts))
