"""Numbers as short words."""

from __future__ import annotations

from collections.abc import Sequence

_BARS = "▁▂▃▄▅▆▇█"


def duration(seconds: float | None) -> str:
    """At most three figures, or a dash."""
    if seconds is None:
        return "–"
    ms = seconds * 1000
    if ms < 9.95:
        return f"{ms:.1f} ms"
    if ms < 999.5:
        return f"{ms:.0f} ms"
    return f"{seconds:.3g} s" if seconds < 999.5 else f"{seconds / 60:.0f} min"


def uptime(seconds: float) -> str:
    minutes, _ = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {int(seconds) % 60} s"


def number(value: float) -> str:
    """At most four figures."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= 10 * size or (abs(value) >= size and unit != "k"):
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"


def memory(num_bytes: float) -> str:
    mib = num_bytes / 2**20
    return f"{mib:.0f} MiB" if mib < 1000 else f"{mib / 1024:.2f} GiB"


def percent(share: float | None) -> str:
    return "–" if share is None else f"{share * 100:.0f} %"


def spark(values: Sequence[float], width: int) -> str:
    """The last of them, the highest full."""
    shown = list(values)[-width:]
    most = max(shown, default=0.0)
    if not most:
        return _BARS[0] * len(shown)
    return "".join(_BARS[min(7, int(value / most * 7.999))] for value in shown)
