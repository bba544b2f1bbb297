"""The examples run, each as a program of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lmserve.bridge.fake import FakeEngine
from lmserve.server.lifecycle import Server

CLIENTS = Path(__file__).parents[2] / "clients"
EXAMPLES = sorted((CLIENTS / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(example: Path, server: Server, fake: FakeEngine) -> None:
    fake.will_say("Hel", "lo").will_say("again")
    done = subprocess.run(
        [sys.executable, "-W", "error", example, server.url],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        env={"PYTHONPATH": str(CLIENTS / "python")},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "Hello" in done.stdout
