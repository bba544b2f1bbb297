"""One server against another, round by round: only what was measured in one round is compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lmserve.bench.figures import median
from lmserve.bench.records import Measured, Records

ByRound = Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Ratio:
    median: float
    least: float
    greatest: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f}–{self.greatest:.2f})"


def output_tok_s(run: Measured) -> float:
    return run.figures.output_tok_s


def by_round(
    records: Records, server: str, workload: str, figure: Callable[[Measured], float]
) -> dict[int, float]:
    """A run without one whole answer has no figure."""
    runs = records.runs(server, workload)
    return {number: figure(run) for number, run in runs.items() if run.figures.ok}


def ratio(of: ByRound, to: ByRound) -> Ratio | None:
    """None where no round has both."""
    values = [of[number] / to[number] for number in of if to.get(number)]
    if not values:
        return None
    return Ratio(median(values), min(values), max(values))


def best(speeds: Mapping[str, ByRound]) -> str | None:
    """Whose median is the greatest; None where nobody has any."""
    medians = {name: median(list(values.values())) for name, values in speeds.items() if values}
    return max(medians, key=lambda name: medians[name], default=None)
