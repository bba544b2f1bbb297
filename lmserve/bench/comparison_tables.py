"""A comparison as Markdown: every figure of each workload, or one row a workload."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from lmserve.bench.figures import median
from lmserve.bench.machine import DISTURBED, NOTE, Load
from lmserve.bench.ratios import best, by_round, output_tok_s, ratio
from lmserve.bench.records import Measured, Records
from lmserve.bench.table import Cell, table
from lmserve.bench.workload import Workload

PERCENTS = ("p50", "p95", "p99")
HEADERS = (
    *("server", "output tok/s", "each round", "TTFT ms p50/p95/p99", "ITL ms p50/p95/p99"),
    *("E2E ms p50/p95/p99", "req/s", "ok/errors"),
)


def detailed(records: Records) -> str:
    parts = [_of_workload(records, work) for work in records.workloads]
    parts += [_starts_and_memory(records)]
    failed = [f"- {each.server}, round {each.round + 1}: {each.error}" for each in records.failed]
    parts += ["\n".join(["Failed:", *failed])] if failed else []
    return "\n\n".join(part for part in parts if part)


# --- every figure ---------------------------------------------------------------------------


def _of_workload(records: Records, work: Workload) -> str:
    first = records.servers[0]
    runs = {name: list(records.runs(name, work.name).values()) for name in records.servers}
    slo = next((run.figures.slo_ms for all_ in runs.values() for run in all_), {})
    headers = [*HEADERS, *(["within SLO", "goodput req/s"] if slo else [])]
    headers += [f"{first} : this"] if len(runs) > 1 else []
    rows = []
    for name, made in runs.items():
        row = [name, *_figures(made)]
        row += _within(made) if slo else []
        row += [_first_to(records, name, work)] if len(runs) > 1 else []
        rows.append(row)
    lines = [f"**{work.name}: {work.title}, {work.num_requests} requests**", ""]
    lines += [table(headers, rows), *_notes(list(runs.values()), slo)]
    return "\n".join(lines)


def _figures(runs: Sequence[Measured]) -> list[Cell]:
    speeds = [run.figures.output_tok_s for run in runs]
    each = (f"{run.figures.output_tok_s:.1f}{_mark(run.load)}" for run in runs)
    ok, errors = sum(run.figures.ok for run in runs), sum(run.figures.errors for run in runs)
    return [
        median(speeds) if runs else None,
        ", ".join(each),
        _percents([run.figures.ttft_ms for run in runs]),
        _percents([run.figures.itl_ms for run in runs]),
        _percents([run.figures.e2e_ms for run in runs]),
        median([run.figures.req_s for run in runs]) if runs else None,
        f"{ok}/{errors}",
    ]


def _within(runs: Sequence[Measured]) -> list[Cell]:
    met = [run.figures.slo_met for run in runs if run.figures.slo_met is not None]
    good = [run.figures.goodput_req_s for run in runs if run.figures.goodput_req_s is not None]
    return [f"{median(met):.1%}", median(good)]


def _first_to(records: Records, name: str, work: Workload) -> str:
    first, other = (
        by_round(records, each, work.name, output_tok_s) for each in (records.servers[0], name)
    )
    found = ratio(first, other) if name != records.servers[0] else None
    return str(found or "")


def _percents(of_runs: Sequence[Mapping[str, float]]) -> str:
    """Medians of the runs' percentiles."""
    values = (median([run.get(name, 0.0) for run in of_runs]) for name in PERCENTS)
    return " / ".join(f"{value:.{1 if value < 100 else 0}f}" for value in values)


def _mark(load: Load | None) -> str:
    return DISTURBED if load and load.is_disturbed else ""


def _notes(of_servers: Sequence[Sequence[Measured]], slo: Mapping[str, float]) -> Iterator[str]:
    runs = [run for made in of_servers for run in made]
    lines = []
    if slo:
        limits = ", ".join(f"{name} {limit:g} ms" for name, limit in slo.items())
        lines.append(f"SLO of a request: {limits}; itl is its longest gap.")
    if any(run.load.is_disturbed for run in runs):
        lines.append(f"{NOTE}.")
    if any(run.figures.counted_by != "usage" for run in runs):
        lines.append("A server told no usage: its pieces were counted for tokens.")
    kinds: dict[str, int] = {}
    for run in runs:
        for kind, number in run.figures.error_kinds.items():
            kinds[f"{run.server}: {kind}"] = kinds.get(f"{run.server}: {kind}", 0) + number
    lines += [f"{number} × {kind}" for kind, number in kinds.items()]
    if lines:
        yield ""
        yield from (f"- {line}" for line in lines)


def _starts_and_memory(records: Records) -> str:
    rows: list[list[Cell]] = []
    for name in records.servers:
        lives = records.lives(name)
        starts = [life.start_s for life in lives if life.start_s is not None]
        sizes = [life.pss_mib for life in lives if life.pss_mib is not None]
        if starts or sizes:
            each = ", ".join(
                f"{life.start_s:.2f}{_mark(life.start_load)}"
                for life in lives
                if life.start_s is not None
            )
            rows.append([name, *(median(some) if some else None for some in (starts, sizes)), each])
    headers = ["server", "start to first answer, s", "memory at the end, PSS, MiB", "each start, s"]
    return table(headers, rows) if rows else ""


# --- one row a workload ---------------------------------------------------------------------


def one_row_each(records: Records, peers: Sequence[str] = ()) -> str:
    """Output tokens a second, and how many times the best of the peers each of the others makes.
    Peers are all but the first server where none is named."""
    peers = peers or records.servers[1:]
    ours = [name for name in records.servers if name not in peers] if peers else []
    headers = ["workload", *records.servers, *(f"{name} : best peer" for name in ours)]
    rows = [_row(records, work, ours, peers) for work in records.workloads]
    for title, values in _lives(records).items():
        rows.append(
            [title, *(_cell(values[name]) for name in records.servers), *("" for _ in ours)]
        )
    return table(headers, rows)


def _row(records: Records, work: Workload, ours: Sequence[str], peers: Sequence[str]) -> list[Cell]:
    speeds = {name: by_round(records, name, work.name, output_tok_s) for name in records.servers}
    row: list[Cell] = [f"{work.name}: {work.title}"]
    for name, values in speeds.items():
        row.append(_cell(list(values.values()), _disturbed(records, name, work)))
    peer = best({name: speeds[name] for name in peers})
    for name in ours:
        found = ratio(speeds[name], speeds[peer]) if peer else None
        row.append(f"{found}, {peer}" if found else None)
    return row


def _lives(records: Records) -> dict[str, dict[str, list[float]]]:
    starts = {
        name: [life.start_s for life in records.lives(name) if life.start_s is not None]
        for name in records.servers
    }
    sizes = {
        name: [life.pss_mib for life in records.lives(name) if life.pss_mib is not None]
        for name in records.servers
    }
    return {"start to first answer, s": starts, "memory after the runs, PSS, MiB": sizes}


def _disturbed(records: Records, name: str, work: Workload) -> str:
    runs = records.runs(name, work.name).values()
    return max((_mark(run.load) for run in runs), default="")


def _cell(values: Sequence[float], mark: str = "") -> str:
    """Median, least and greatest."""
    if not values:
        return "-"
    digits = 1 if median(values) < 1000 else 0
    middle, least, most = (f"{v:.{digits}f}" for v in (median(values), min(values), max(values)))
    return f"{middle}{mark}" + (f" ({least}–{most})" if len(values) > 1 else "")
