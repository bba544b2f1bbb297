"""A part in a process of its own, ended with all that it started when its time is over. Standard
library only."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from bench.gpu.options import Options
from bench.gpu.parts import Part
from bench.gpu.record import CUT_SHORT, FAILED, read

ROOT = Path(__file__).resolve().parents[2]
LOG_LINES = 60  # the last of what it printed, kept with the results of one that failed
END_S = 25.0  # what it, and a server that it started, have to end in before it is killed


def run_part(part: Part, options: Options, limit_s: float) -> str:
    """Its status. What it prints is in a .log beside its results."""
    file = options.file(part.name)
    file.unlink(missing_ok=True)
    asked = {
        "name": part.name,
        "function": part.function,
        "arguments": part.arguments,
        "options": asdict(options),
    }
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    with file.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen(
            [part.python or sys.executable, "-m", "bench.gpu.child", json.dumps(asked)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            start_new_session=True,
        )
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
    return _status(file, code, limit_s)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # what it left behind, itself if need be
    process.wait()


def _status(file: Path, code: int | None, limit_s: float) -> str:
    """What the part itself could not say is added."""
    told = read(file)
    if told is None:
        told = {"part": file.stem, "figures": {}, "checks": [], "seconds": 0.0}
    elif code == 0:
        return str(told["status"])
    if code is None:
        told |= {"status": CUT_SHORT, "error": f"ended after {limit_s:.0f} s"}
    elif told.get("status") != FAILED:  # it ended without a word of its own
        told |= {"status": FAILED, "error": f"ended with status {code}"}
    lines = file.with_suffix(".log").read_text(errors="replace").splitlines()
    told["log"] = lines[-LOG_LINES:]
    file.write_text(json.dumps(told, indent=1) + "\n")
    return str(told["status"])
