"""What a measurement was taken on, and who else used the machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from lmserve.bench import repetition
from lmserve.bench.machine import Load, LoadMeter, describe
from lmserve.bench.repetition import measured

BURN = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass"


def burn() -> None:
    exec(BURN, {})


def test_a_machine_is_described_for_the_record():
    told = json.loads(json.dumps(describe()))
    assert {"date", "cpu", "cpu_flags", "cores", "torch", "lmserve", "commit"} <= told.keys()
    assert told["date"].endswith("+00:00")


def test_what_we_and_those_below_us_use_is_ours():
    meter = LoadMeter()
    burn()
    subprocess.run([sys.executable, "-c", BURN], check=True, timeout=50)
    load = meter.read()
    assert load.own_cores * load.wall_s >= 0.55
    assert load.foreign_cores >= 0 and load.stolen_cores >= 0


WATCHER = """
import sys
from lmserve.bench.machine import LoadMeter
meter = LoadMeter([int(pid) for pid in sys.argv[1:]])
input(print(flush=True) or "")
load = meter.read()
print(load.own_cores * load.wall_s)
"""


@pytest.mark.parametrize("named", [False, True])
def test_what_others_use_is_ours_only_where_they_are_named(named: bool):
    """Of a process below this one, which burns."""
    command = [sys.executable, "-c", WATCHER, *([str(os.getpid())] if named else [])]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as watcher:
        assert watcher.stdout.readline() == "\n"
        burn()
        out, _ = watcher.communicate("\n", timeout=50)
    assert (float(out) >= 0.25) == named


@pytest.mark.parametrize(
    ("loads", "kept", "attempts"),
    [
        ([0, 0], ["0/0", "1/0"], [1, 1]),
        ([9, 0, 0], ["0/1", "1/0"], [2, 1]),
        ([9, 7, 8, 0], ["0/1", "1/0"], [3, 1]),
    ],
)
def test_a_disturbed_round_is_measured_again_and_the_quietest_stays(
    monkeypatch: pytest.MonkeyPatch, loads: list[float], kept: list[str], attempts: list[int]
):
    left = iter(loads)

    class Meter:
        def read(self) -> Load:
            return Load(1.0, 1.0, next(left) * 100, 0.0)

    monkeypatch.setattr(repetition, "LoadMeter", Meter)
    rounds = measured(lambda name: name, 2, repeats=2)
    assert [each.result for each in rounds] == kept
    assert [each.num_attempts for each in rounds] == attempts
    assert next(left, None) is None
