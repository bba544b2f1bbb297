"""The reconnect storm of bench/, small: every transcript is that of its uncut twin."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[2] / "bench" / "reconnect.py"


def test_cut_streams_are_resumed_without_a_gap():
    command = [sys.executable, str(BENCH), "--mock", "--streams", "40", "--at-once", "40"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("40 streams, ")
