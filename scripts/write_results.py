"""Writes the results table of docs/reliability.md from what the measurements have written.

python scripts/write_results.py disconnects.json storm.json soak.json overload.json faults.json …
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reliability.md"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
Figure = tuple[str, str]  # words of the row that it belongs to, and what stands there


def main(paths: list[str]) -> None:
    page = PAGE.read_text()
    for path in paths:
        for result in read(Path(path).read_text()):
            for row, figure in figures(result):
                page = with_figure(page, row, figure)
    PAGE.write_text(page)


def read(text: str) -> Iterator[dict[str, Any]]:
    """One object, or one a line."""
    try:
        yield json.loads(text)
    except json.JSONDecodeError:
        yield from map(json.loads, text.splitlines())


def figures(result: dict[str, Any]) -> Iterator[Figure]:
    match result:
        case {"record": "disconnects", "settled_s": after, "clients": clients}:
            seconds = max(after["requests"], after["blocks"])
            yield "clients that leave: until", f"{seconds:.2f} s, of {clients:,}"
            yield "until tasks and descr", f"{max(after['tasks'], after['descriptors']):.2f} s"
        case {"record": "storm", "server_flags": flags}:
            row = "the same, where 100" if "max-queued-requests" in flags else "streams of 32"
            yield (
                row,
                (
                    f"{result['finished']} of {result['streams']} in {result['wall_s']:g} s, "
                    f"{result['refused']} refusals honoured"
                ),
            )
        case {"record": "soak", "memory": memory, "minutes": minutes}:
            yield "slope of memory", f"{memory['both']}; {minutes:g} minutes"
        case {"record": "overload", "max_queue_s": float(), "kept": kept}:
            peak, capacity = result["peak_req_s"], result["capacity_req_s"]
            yield (
                "three times capacity",
                (f"{kept:.0%} of {peak:.2f} requests/s; capacity {capacity:.2f}/s"),
            )
        case {"record": "drain", "streams": streams}:
            finished = result["finished_before"] + result["finished"]
            yield (
                "SIGTERM among",
                (
                    f"{finished} finished, {result['told']} told at the deadline, "
                    f"{result['cut_off']} cut off, of {streams}; gone after {result['exit_s']:g} s"
                ),
            )
        case {"ready_s": [*ready_s], "completed_share": share}:
            yield "until ready", f"{max(ready_s):.2f} s at most, of {len(ready_s)} kills"
            yield "answers that complete", f"{share:.0%}"
        case {"results": {"fair": {"median": {"ratio": ratio}}}}:
            yield "beside a key of fifty", f"{ratio:.2f}"
        case _:
            raise SystemExit(f"no measurement of docs/reliability.md: {str(result)[:200]}")


def with_figure(page: str, row: str, figure: str) -> str:
    """The page with the third column of the results' row that has these words replaced."""
    before, _, rest = page.partition(BEGIN)
    table, _, after = rest.partition(END)
    lines = table.splitlines()
    for index, line in enumerate(lines):
        cells = line.split(" | ")
        if len(cells) == 4 and row in cells[0]:
            lines[index] = " | ".join([*cells[:2], figure, cells[3]])
    return before + BEGIN + "\n".join(lines) + "\n" + END + after


if __name__ == "__main__":
    main(sys.argv[1:])
