"""When something ran on a device, and when nothing did."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

SHOWN = 40  # kernels
NUM_GAPS = 5


class Span(NamedTuple):
    """Of a kernel or a copy, in microseconds."""

    began: float
    ended: float
    name: str


def per_step(spans: Sequence[Span], steps: int) -> dict[str, Any]:
    """Of so many steps: busy and idle time, and what takes most, each of one step."""
    spans = sorted(spans)
    times: dict[str, tuple[float, int]] = defaultdict(lambda: (0.0, 0))
    for span in spans:
        us, calls = times[span.name]
        times[span.name] = us + span.ended - span.began, calls + 1
    busy, gaps = busy_and_gaps(spans)
    return {
        "busy_us": round(busy / steps, 1),
        "gap_us": round(sum(gaps) / steps, 1),
        "longest_gaps_us": [round(gap, 1) for gap in sorted(gaps, reverse=True)[:NUM_GAPS]],
        "kernels_a_step": round(len(spans) / steps, 1),
        "kernels": longest(times, steps),
    }


def busy_and_gaps(spans: Sequence[Span]) -> tuple[float, list[float]]:
    """Time in which something ran, and the lengths of the times between, of spans in order."""
    busy, gaps = 0.0, []
    until: float | None = None
    for began, ended, _ in spans:
        if until is not None and began > until:
            gaps.append(began - until)
        busy += max(0.0, ended - (began if until is None else max(began, until)))
        until = ended if until is None else max(until, ended)
    return busy, gaps


def longest(times: Mapping[str, tuple[float, int]], steps: int) -> list[dict[str, Any]]:
    """By name: microseconds and calls."""
    ordered = sorted(times.items(), key=lambda each: -each[1][0])
    return [
        {"name": name, "us": round(us / steps, 2), "calls": round(calls / steps, 2)}
        for name, (us, calls) in ordered[:SHOWN]
    ]
