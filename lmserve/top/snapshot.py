"""What one look at a server's `/metrics` said, and what happened between two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Snapshot:
    taken_s: float  # on a clock that only runs on
    samples: Mapping[str, list[tuple[Labels, float]]]  # by name

    @classmethod
    def of(cls, text: str, taken_s: float) -> Snapshot:
        """Raises ValueError where it is no such text."""
        samples: dict[str, list[tuple[Labels, float]]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                samples.setdefault(sample.name, []).append((sample.labels, sample.value))
        return cls(taken_s, samples)

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples with these labels; 0 where there are none."""
        return sum(
            value
            for own, value in self.samples.get(name, ())
            if all(own.get(key) == wanted for key, wanted in labels.items())
        )

    def by(self, name: str, label: str, **labels: str) -> dict[str, float]:
        """Sums for each value of this label."""
        sums: dict[str, float] = {}
        for own, value in self.samples.get(name, ()):
            if all(own.get(key) == wanted for key, wanted in labels.items()) and label in own:
                sums[own[label]] = sums.get(own[label], 0.0) + value
        return sums

    def label(self, name: str, label: str) -> str:
        """Of the first sample that has it; "" where none has."""
        return next((own[label] for own, _ in self.samples.get(name, ()) if own.get(label)), "")


@dataclass(frozen=True, slots=True)
class Window:
    """The time between two snapshots. A counter that fell began anew: its server was started."""

    before: Snapshot
    now: Snapshot

    @property
    def seconds(self) -> float:
        return max(1e-9, self.now.taken_s - self.before.taken_s)

    def added(self, name: str, **labels: str) -> float:
        return _grown(self.before.value(name, **labels), self.now.value(name, **labels))

    def rate(self, name: str, **labels: str) -> float:
        return self.added(name, **labels) / self.seconds

    def rates_by(self, name: str, label: str, **labels: str) -> dict[str, float]:
        before = self.before.by(name, label, **labels)
        return {
            key: _grown(before.get(key, 0.0), value) / self.seconds
            for key, value in self.now.by(name, label, **labels).items()
        }

    def share(self, part: str, whole: str) -> float | None:
        """None: nothing of the whole was added."""
        added = self.added(whole)
        return self.added(part) / added if added else None

    def quantile(self, name: str, q: float) -> float | None:
        """Of a histogram, straight lines between its bounds, as Prometheus has it; None: nothing
        was observed."""
        bounds = {float(le): num for le, num in self._buckets(name).items()}
        if not bounds or not (total := bounds.get(float("inf"), 0.0)):
            return None
        wanted, below, least = q * total, 0.0, 0.0
        for bound, num in sorted(bounds.items()):
            if num >= wanted and num > below:
                if bound == float("inf"):
                    return least
                return least + (bound - least) * (wanted - below) / (num - below)
            below, least = num, bound
        return least

    def _buckets(self, name: str) -> dict[str, float]:
        before = self.before.by(f"{name}_bucket", "le")
        now = self.now.by(f"{name}_bucket", "le")
        if any(num < before.get(le, 0.0) for le, num in now.items()):
            return now
        return {le: num - before.get(le, 0.0) for le, num in now.items()}


def _grown(before: float, now: float) -> float:
    return now - before if now >= before else now
