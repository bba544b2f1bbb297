"""A soak as a picture and a page: what was sampled over time, and what follows from it."""

from __future__ import annotations

import html
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from slope import Slope, slope

MIB_PER_HOUR = 2.0  # the interval must end below it
Panel = tuple[str, dict[str, Callable[[dict], float]]]

PANELS: tuple[Panel, ...] = (
    ("private memory, MiB", {
        "server": lambda s: s["memory"]["server"]["private_mib"],
        "engine": lambda s: s["memory"]["engine"]["private_mib"]}),
    ("KV blocks", {
        name: lambda s, name=name: s["held"]["blocks"][name]
        for name in ("held", "pinned", "cached", "free")}),
    ("requests", {
        "running": lambda s: s["held"]["running"], "waiting": lambda s: s["held"]["waiting"]}),
    ("tasks, descriptors", {
        "tasks": lambda s: s["held"]["tasks"], "descriptors": lambda s: s["held"]["descriptors"]}),
    ("latency, ms (median of the last second)", {
        "TTFT": lambda s: s["ttft_ms"], "gap": lambda s: s["gap_ms"]}),
)  # fmt: skip


def slopes(samples: Sequence[dict], warm_s: float, block_s: float) -> dict[str, Slope]:
    """Of the memory after the warm-up, in MiB an hour."""
    warm = [s for s in samples if s["t"] >= warm_s and len(s["memory"]) == 2]
    times = [s["t"] for s in warm]
    parts = {
        name: [s["memory"][name]["private_mib"] for s in warm] for name in ("server", "engine")
    }
    parts["both"] = [sum(pair) for pair in zip(parts["server"], parts["engine"], strict=True)]
    return {name: slope(times, values, block_s) for name, values in parts.items()}


def verdict(found: Slope) -> str:
    zero = "includes" if found.includes_zero else "does NOT include"
    below = "below" if found.high < MIB_PER_HOUR else "NOT below"
    return (
        f"{found.per_hour:+.2f} MiB an hour, 95 % interval {found.low:+.2f} to {found.high:+.2f}: "
        f"{zero} zero, ends {below} {MIB_PER_HOUR:g} ({found.num_blocks} blocks, "
        f"autocorrelation {found.rho:.2f})"
    )


def is_bounded(found: Slope) -> bool:
    return found.includes_zero and found.high < MIB_PER_HOUR


def draw(samples: Sequence[dict], warm_s: float, png: Path | None) -> str:
    """The picture as SVG; with `png`, also there."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, rows = pyplot.subplots(
        len(PANELS), 1, figsize=(10, 13), sharex=True, layout="constrained"
    )
    for axes, (title, lines) in zip(rows, PANELS, strict=True):
        for name, of in lines.items():
            seen = [(s["t"] / 60, of(s)) for s in samples if len(s["memory"]) == 2]
            axes.plot(*zip(*seen, strict=True), lw=0.9, label=name)
        axes.axvspan(0, warm_s / 60, color="grey", alpha=0.12)
        axes.set_title(title, fontsize=10, loc="left")
        axes.legend(fontsize=8, loc="upper right")
        axes.set_ylim(bottom=0)
    rows[-1].set_xlabel("minutes (grey: warm-up)")
    text = io.StringIO()
    figure.savefig(text, format="svg")
    if png is not None:
        figure.savefig(png, dpi=90)
    pyplot.close(figure)
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def page(summary: dict, svg: str) -> str:
    rows = "".join(
        f"<tr><th>{html.escape(name)}<td>{html.escape(_shown(value))}"
        for name, value in summary.items()
    )
    return (
        "<!doctype html><meta charset=utf-8><title>lmserve: soak</title>"
        "<style>body{font:15px system-ui;max-width:66em;margin:2em auto;padding:0 1em}"
        "th{text-align:left;vertical-align:top;padding-right:1em}svg{width:100%;height:auto}"
        f"</style><h1>Soak</h1><table>{rows}</table>{svg}\n"
    )


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
