"""The project's own tests of kernels and backends, which take the GPU where there is one, and those
that need one (marker `gpu`)."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

from bench.gpu.options import Options
from bench.gpu.record import Record

ROOT = Path(__file__).resolve().parents[3]
TESTS = ("tests/attention", "tests/device", "tests/fused", "tests/kernels")
NEEDS = ("pytest", "pytest_asyncio", "pytest_timeout", "hypothesis")
LIMIT_S = 140.0


def check(options: Options, record: Record) -> None:
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing or not options.cuda:
        reason = f"{', '.join(missing)} missing" if missing else "no GPU: the test suite runs them"
        record.figure("left out", reason)
        return
    found = [folder for folder in TESTS if (ROOT / folder).is_dir()]
    for name, wanted in (
        ("kernels and backends", ["-m", "not slow", *found]),
        ("gpu", ["-m", "gpu"]),
    ):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *wanted]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S)
        lines = done.stdout.splitlines()
        failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
        none = done.returncode == 5  # pytest's word for no tests
        record.holds(name, done.returncode == 0 or none, told=lines[-1:], failed=failed[:40])
