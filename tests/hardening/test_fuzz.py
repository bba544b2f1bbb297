"""Each target of fuzz/ on its seeds and on changed copies, the same every time; longer by hand."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fuzz import TARGETS
from fuzz.mutations import mutants

NUM_MUTANTS = {"gguf_tokenizer": 20, "streams": 150, "structures": 100}
FUZZ_S = int(os.environ.get("FUZZ_S", "10"))
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", TARGETS)
def test_it_holds_on_changed_seeds(name: str) -> None:
    target = importlib.import_module(f"fuzz.{name}")
    for data in mutants(target.seeds(), target.WORDS, NUM_MUTANTS.get(name, 400)):
        try:
            target.check(data)
        except Exception as error:
            raise AssertionError(f"{name} breaks on {data!r}") from error


@pytest.mark.slow
@pytest.mark.timeout(FUZZ_S + 120)
@pytest.mark.parametrize("name", TARGETS)
def test_atheris_finds_nothing(name: str) -> None:
    pytest.importorskip("atheris")
    command = [sys.executable, "-m", "fuzz", name, "--seconds", str(FUZZ_S)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
