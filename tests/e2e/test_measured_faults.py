"""The measurements of faults with the default model, for half a minute each: they end with 0."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lmserve.errors import ModelError
from lmserve.weights import files

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(480)]


@pytest.fixture(autouse=True)
def has_default_model() -> None:
    try:
        files.resolve(None, files.cache_dir(os.environ.get("LMSERVE_CACHE_DIR")))
    except ModelError as error:
        pytest.skip(f"the default model cannot be had: {error.message}")


def measured(tmp_path: Path, script: str, *options: str) -> Any:
    """What it wrote. Whatever it started ends with it."""
    result = tmp_path / "result.json"
    command = [sys.executable, str(ROOT / "bench" / script), "--json", str(result), *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path
    )
    try:
        words, _ = process.communicate(timeout=400)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)  # it ends its server
        words, _ = process.communicate(timeout=60)
    assert process.returncode == 0, words
    return json.loads(result.read_text())


def test_an_engine_that_is_killed_again_and_again(tmp_path: Path) -> None:
    options = ("--seconds", "30", "--every", "9", "--clients", "4", "--within", "60")
    seen = measured(tmp_path, "faults.py", *options, "--least", "0.1")
    assert len(seen["ready_s"]) >= 2
    assert set(seen["requests"]) <= {"completed", "failed", "refused"}


def test_a_drain_under_load(tmp_path: Path) -> None:
    seen = measured(tmp_path, "drain.py", "--streams", "24", "--deadline", "8")
    assert seen["cut_off"] == 0
    assert seen["told"] >= 2  # those that no deadline allows
    assert seen["finished"] + seen["finished_before"] + seen["told"] == 24
