"""Looks for inputs that break what reads them: `python -m fuzz [TARGET…] --seconds 60`.

Each target is a module here: `seeds`, `check` and `WORDS`. It is run by atheris (libFuzzer), in a
process of its own, with bounds on the time and memory of one input. What it finds is kept in
build/fuzz/, and is shown again by `python -m fuzz TARGET --again FILE`.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from fuzz import TARGETS

FOUND = Path("build") / "fuzz"
BOUNDS = ("-timeout=20", "-rss_limit_mb=2048", "-max_len=16384", "-print_final_stats=0")


@click.command(help=__doc__)
@click.argument("targets", nargs=-1, type=click.Choice(TARGETS))
@click.option("--seconds", default=60, show_default=True, help="For each target.")
@click.option("--again", type=click.Path(exists=True, path_type=Path), help="An input to try.")
@click.option("--alone", is_flag=True, hidden=True, help="In this process.")
def main(targets: tuple[str, ...], seconds: int, again: Path | None, alone: bool) -> None:
    chosen = targets or TARGETS
    if again is not None:
        for name in chosen:
            importlib.import_module(f"fuzz.{name}").check(again.read_bytes())
    elif alone:
        run(chosen[0], seconds)
    else:
        failed = [name for name in chosen if not holds(name, seconds)]
        if failed:
            raise SystemExit(f"found something in {', '.join(failed)}: see {FOUND}/")


def holds(name: str, seconds: int) -> bool:
    """Whether a process of its own finds nothing. What it writes goes with it: libFuzzer ends a
    process without a word."""
    command = [sys.executable, "-m", "fuzz", name, "--alone", "--seconds", str(seconds)]
    with tempfile.TemporaryDirectory(prefix="lmserve-fuzz-") as folder:
        return not subprocess.run(command, env=os.environ | {"TMPDIR": folder}).returncode


def run(name: str, seconds: int) -> None:
    """Does not return."""
    import atheris

    with atheris.instrument_imports(include=["lmserve"]):
        target = importlib.import_module(f"fuzz.{name}")
    FOUND.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp())
    for index, seed in enumerate(target.seeds()):
        Path(folder, str(index)).write_bytes(seed)
    words = Path(tempfile.mkdtemp(), "words")
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in target.WORDS))
    click.echo(f"fuzz {name}: {seconds} s")
    bounds = (*BOUNDS, f"-max_total_time={seconds}", f"-artifact_prefix={FOUND}/{name}-")
    atheris.Setup([name, *bounds, f"-dict={words}", str(folder)], target.check)
    atheris.Fuzz()


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


if __name__ == "__main__":
    main()
