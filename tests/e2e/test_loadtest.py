"""Every scenario of loadtest/ for a few seconds, against an engine without a model."""

from __future__ import annotations

import csv
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KINDS = ("REST", "SSE", "WebSocket", "interactive", "leaving", "nonsense")
TIMES = {
    (kind, name)
    for kind in ("SSE", "WebSocket", "interactive")
    for name in ("TTFT", "inter-token latency", "whole answer", "tokens/s of an answer")
}
SERVER = "--engine mock --mock-tokens-s 200"


@pytest.mark.timeout(180)
@pytest.mark.skipif(
    importlib.util.find_spec("locust") is None, reason="needs locust: the extra `loadtest`"
)
def test_mixed_load_ends_without_an_error_and_measures_each_kind(tmp_path: Path) -> None:
    for seconds in (2, 8, 24):  # a busy machine may end two seconds before it has begun
        words, seen = loaded(tmp_path / f"for-{seconds}", seconds)
        if {kind for kind, _ in seen} >= {*KINDS, "goodput"} and seen.keys() >= TIMES:
            break
    else:
        raise AssertionError(words)
    assert all(seen[each] > 0 for each in TIMES)
    assert " 0 errors" in words
    assert "goodput: " in words


def loaded(csv_prefix: Path, seconds: int) -> tuple[str, dict[tuple[str, str], int]]:
    """What it said, and how many there were of each kind and name."""
    command = [sys.executable, str(ROOT / "loadtest/run.py"), "--server-flags", SERVER]
    options = ["--users", "14", "--spawn-rate", "14", "--run-time", f"{seconds}s"]
    done = subprocess.run(
        [*command, *options, "--max-tokens", "8", "--csv", str(csv_prefix)],
        capture_output=True,
        text=True,
        timeout=80,
        cwd=csv_prefix.parent,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with Path(f"{csv_prefix}_stats.csv").open() as file:
        rows = list(csv.DictReader(file))
    return done.stdout, {(row["Type"], row["Name"]): int(row["Request Count"]) for row in rows}
