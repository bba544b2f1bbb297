"""Parts of `bench.gpu` that go wrong, each in its own way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from bench.gpu.options import Options
from bench.gpu.record import Record


def good(options: Options, record: Record, *, number: int) -> None:
    record.figure("number", number)
    record.check("close", 0.5, 1.0)


def wrong(options: Options, record: Record) -> None:
    record.holds("before", True)
    with record.attempt("broken"):
        raise ValueError("no  good\nat all")
    record.check("no number", float("nan"), 1.0)


def raises(options: Options, record: Record) -> None:
    record.figure("begun", True)
    raise RuntimeError("nothing more to be done")


def dies(options: Options, record: Record) -> None:
    record.figure("begun", True)
    sys.stdout.write("last words\n")
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGKILL)


def hangs(options: Options, record: Record) -> None:
    """And so does what it started, which is told of no end."""
    child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    record.figure("child", child.pid)
    signal.pause()
