"""The dashboard's frame. Needs rich.

title
╭ latency ─────────╮ ╭ load ────────────╮      beside each other where there is room
╭ engine ──────────╮ ╭ server ──────────╮
╭ API keys ────────────────────────────╮
"""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from lmserve.top.figures import QUANTILES, Figures, KeyFigures, Process, Watched
from lmserve.top.words import duration, memory, number, percent, spark, uptime

TWO_COLUMNS = 76  # characters; narrower, the panels stand one below the other
_STATE_STYLES = {"ready": "green", "loading": "yellow", "sleeping": "blue"}
_BLOCK_STYLES = (("held", "magenta"), ("pinned", "yellow"), ("cached", "cyan"), ("free", "dim"))
_MAX_KEYS = 50


def frame(watched: Watched, width: int, height: int, hint: str = "") -> RenderableType:
    """What fits on a terminal of this size."""
    title = _title(watched, hint, width)
    figures = watched.figures
    if figures is None:
        return title
    inner = (width // 2 if width >= TWO_COLUMNS else width) - 4
    panels = [
        _panel("latency", _latency(figures)),
        _panel("load", _load(figures, watched, inner)),
        _panel("engine", _engine(figures, inner)),
        _panel("server", _server(figures)),
    ]
    parts: list[RenderableType] = [title]
    if width >= TWO_COLUMNS:
        grid = Table.grid(expand=True)
        grid.add_column(ratio=1)
        grid.add_column(ratio=1)
        grid.add_row(*panels[:2])
        grid.add_row(*panels[2:])
        parts.append(grid)
        left = height - 18
    else:
        parts += panels
        left = height - 34
    if figures.keys and left > 3:
        parts.append(_panel("API keys", _keys(figures.keys[: min(left - 3, _MAX_KEYS)])))
    return Group(*parts)


def _title(watched: Watched, hint: str, width: int) -> RenderableType:
    line = Text(no_wrap=True, overflow="ellipsis")
    figures = watched.figures
    if figures is not None:
        state = "draining" if figures.draining else figures.state
        style = "dim" if watched.problem else _STATE_STYLES.get(state, "bold red")
        line.append("● ", style).append(f"{state}  ", style)
        line.append(figures.model, "bold").append(f"  up {uptime(figures.up_s)}", "dim")
        line.append(f"  lmserve {figures.version}", "dim")
        where = watched.url
        if line.cell_len + len(where) + len(hint) + 4 <= width:
            line.append(f"  {where}", "dim")
    if hint and line.cell_len + len(hint) + 2 <= width:
        line.append(" " * (width - line.cell_len - len(hint)) + hint, "dim")
    if not watched.problem:
        return line
    problem = Text(f"{watched.url}: {watched.problem}; trying again", "bold red")
    return Group(line, problem) if figures is not None else problem


def _panel(title: str, body: RenderableType) -> Panel:
    return Panel(body, title=title, title_align="left", border_style="dim", padding=(0, 1))


def _latency(figures: Figures) -> Table:
    table = _table("", *(f"p{q * 100:.0f}" for q in QUANTILES))
    for label, quantiles in figures.latencies:
        table.add_row(label, *map(duration, quantiles))
    return table


def _load(figures: Figures, watched: Watched, width: int) -> RenderableType:
    wait = f", {duration(figures.oldest_wait_s)} the oldest" if figures.num_waiting else ""
    failed = f", {percent(figures.failed_share)} failed" if figures.failed_share else ""
    refused = Text(f"{number(figures.rejected_s)}/s", "bold red" if figures.rejected_s else "")
    pairs = _pairs(
        ("running", number(figures.num_running)),
        ("waiting", number(figures.num_waiting) + wait),
        ("ended", Text(f"{number(figures.requests_s)}/s").append(failed, "bold red")),
        ("refused", refused),
        (
            "tokens",
            f"{number(figures.answer_tokens_s)}/s out, {number(figures.prompt_tokens_s)}/s in",
        ),
    )
    return Group(pairs, Text(spark(watched.tokens_s, width), "green", no_wrap=True))


def _engine(figures: Figures, width: int) -> RenderableType:
    total = sum(figures.blocks.values())
    used = figures.blocks.get("held", 0.0) + figures.blocks.get("pinned", 0.0)
    bar = Text(no_wrap=True)
    drawn = 0
    seen = 0.0
    for state, style in _BLOCK_STYLES:
        seen += figures.blocks.get(state, 0.0)
        until = round(width * seen / total) if total else 0
        bar.append(("░" if state == "free" else "█") * (until - drawn), style)
        drawn = until
    num_cached = number(figures.blocks.get("cached", 0.0))
    share = percent(used / total if total else None)
    step = "–" if figures.step_tokens is None else f"{number(figures.step_tokens)} tokens"
    if figures.accepted_share is not None:
        step += f", proposed: {percent(figures.accepted_share)} right"
    pairs = (
        ("KV blocks", f"{share} of {number(total)}, {num_cached} cached"),
        ("prefix", "–" if figures.hit_share is None else f"{percent(figures.hit_share)} found"),
        ("step", step),
        ("preempted", f"{number(figures.preemptions_s)}/s"),
        ("restarts", number(figures.restarts)),
    )
    return Group(bar, _pairs(*pairs))


def _server(figures: Figures) -> Table:
    table = _table("", "memory", "CPU", "files")
    table.add_row("server", *_process(figures.server))
    if figures.engine_process is not None:
        table.add_row("engine", *_process(figures.engine_process))
    else:
        table.add_row("engine", "–", "–", "–")
    lag = figures.loop_lag_s
    table.add_row("loop lag p99", duration(lag), Text("tasks", "dim"), number(figures.num_tasks))
    table.add_row(
        "connections",
        number(figures.num_connections),
        Text("sockets", "dim"),
        number(figures.num_sockets),
    )
    table.add_row(
        "sessions",
        number(figures.num_sessions),
        Text("streams", "dim"),
        number(figures.num_streams),
    )
    return table


def _process(process: Process) -> tuple[str, str, str]:
    return memory(process.resident_bytes), percent(process.cpu), number(process.num_files)


def _keys(keys: list[KeyFigures]) -> Table:
    table = _table("", "open", "ended", "tokens", "refused")
    for key in keys:
        table.add_row(
            Text(key.name, no_wrap=True, overflow="ellipsis"),
            number(key.num_open),
            f"{number(key.requests_s)}/s",
            f"{number(key.tokens_s)}/s",
            f"{number(key.rejected_s)}/s",
        )
    return table


def _pairs(*pairs: tuple[str, str | Text]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(no_wrap=True, overflow="ellipsis")
    for pair in pairs:
        table.add_row(*pair)
    return table


def _table(*columns: str) -> Table:
    """Names at the left, numbers at the right."""
    table = Table(box=None, expand=True, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column(columns[0], style="dim", no_wrap=True)
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    return table
