"""`make gpu`, on tiny models without a GPU: what it runs, and what becomes of what goes wrong."""

from __future__ import annotations

import ast
import json
import os
import select
import subprocess
import sys
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from bench.gpu.__main__ import RESULTS
from bench.gpu.options import Options
from bench.gpu.parts import CHECKED, GROUPS, Part, parts
from bench.gpu.processes import ROOT, run_part
from bench.gpu.record import Record, read
from bench.gpu.report import markdown
from bench.gpu.rows import CASES, measure, prompts
from bench.gpu.shapes import LARGE, SHAPES, SMALL, TINY, write_model
from bench.gpu.spans import Span, per_step
from lmserve.bench.words import WORDS


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return Options(str(tmp_path), str(tmp_path / "models"), device="cpu", tiny=True)


# --- parts ----------------------------------------------------------------------------------


def test_what_matters_most_runs_first_and_no_two_parts_share_a_name(options: Options) -> None:
    cuda = replace(options, device="cuda", tiny=False, peer_python="/python", rounds=2)
    found = parts(cuda, GROUPS)
    names = [part.name for part in found]
    assert len(set(names)) == len(names)
    assert names[:5] == [
        "facts", "check-attention", "check-models", f"rows-lmserve-{LARGE}", f"rows-vllm-{LARGE}"
    ]  # fmt: skip
    second = names.index(f"rows-vllm-{LARGE}-2")
    assert names[second + 1] == f"rows-lmserve-{LARGE}-2"
    assert not any(part.needs for part in found)
    assert {f"check-{name}" for name in CHECKED} < set(names)
    assert [part.python for part in found if part.python] == ["/python"] * 4  # two shapes twice


def test_what_cannot_run_says_why(options: Options) -> None:
    needs = {part.name: part.needs for part in parts(options, GROUPS)}
    assert needs[f"rows-vllm-{TINY}"] == "vllm is measured on a GPU only"
    without = {part.name: part.needs for part in parts(replace(options, device="cuda"), GROUPS)}
    assert without["http-vllm"].startswith("vllm is not installed")
    assert not needs[f"rows-lmserve-{TINY}"] and not needs["facts"]


def test_every_part_is_there(options: Options) -> None:
    """Looked up, not imported: some import all of torch."""
    for part in parts(replace(options, checkpoint=True), GROUPS):
        module, _, name = part.function.partition(":")
        spec = find_spec(module)
        assert spec is not None and spec.origin is not None
        tree = ast.parse(Path(spec.origin).read_text())
        assert name in {each.name for each in tree.body if isinstance(each, ast.FunctionDef)}


# --- a part in its process ------------------------------------------------------------------


def told(options: Options, kind: str, limit_s: float = 30, **arguments: Any) -> dict[str, Any]:
    part = Part(kind, "facts", f"tests.bench.gpu_parts:{kind}", limit_s, arguments)
    status = run_part(part, options, limit_s)
    content = read(options.file(kind))
    assert content is not None and content["status"] == status
    return content


def test_a_part_that_passes_is_ok(options: Options) -> None:
    found = told(options, "good", number=7)
    assert (found["status"], found["error"], found["figures"]) == ("ok", None, {"number": 7})
    assert found["checks"] == [{"name": "close", "ok": True, "error": 0.5, "bound": 1.0}]


def test_checks_that_fail_fail_the_part_and_the_rest_goes_on(options: Options) -> None:
    found = told(options, "wrong")
    assert found["status"] == "failed"
    before, broken, last = found["checks"]
    assert (before["ok"], broken["ok"], last["ok"]) == (True, False, False)
    assert broken["why"] == "ValueError: no good at all"
    assert last["error"] == "nan"


def test_an_error_is_kept_with_what_was_found_before(options: Options) -> None:
    found = told(options, "raises")
    assert (found["status"], found["figures"]) == ("failed", {"begun": True})
    assert found["error"] == "RuntimeError: nothing more to be done"
    assert any("in raises" in line for line in found["log"])


def test_a_part_whose_process_dies_is_told_of(options: Options) -> None:
    found = told(options, "dies")
    assert (found["status"], found["figures"]) == ("failed", {"begun": True})
    assert (found["error"], found["log"]) == ("ended with status -9", ["last words"])


def test_a_part_that_hangs_is_ended_with_all_it_started(options: Options) -> None:
    found = told(options, "hangs", limit_s=2)
    assert (found["status"], found["error"]) == ("cut short", "ended after 2 s")
    assert has_ended(found["figures"]["child"])


def has_ended(pid: int) -> bool:
    """Within some seconds: it was killed, which nobody waited for."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], 20)[0])
    finally:
        os.close(handle)


# --- models and prompts ---------------------------------------------------------------------


def test_prompts_are_those_the_peers_were_measured_with() -> None:
    """The first tokens, noted from the script that measured them."""
    assert prompts(1, 128, SHAPES[LARGE]["vocab_size"])[0][:4] == FIRST
    many = prompts(32, 128, 151_936)
    assert {len(each) for each in many} == {128} and len({tuple(each) for each in many}) == 32
    assert all(1000 <= token < 150_936 for each in many for token in each)
    assert [case.name for case in CASES][-1] == "prefill64_2048_8"


FIRST = [137412, 72250, 13104, 105543]


@pytest.mark.parametrize("shape", [pytest.param(SMALL, marks=pytest.mark.slow), TINY])
def test_a_made_tokenizer_has_a_text_for_every_id(tmp_path: Path, shape: str) -> None:
    path = write_model(tmp_path, shape)
    size = SHAPES[shape]["vocab_size"]
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == size
    assert all(tokenizer.id_to_token(token) for token in (0, 255, 1000, size - 4, size - 1))
    assert tokenizer.decode([1000, size - 4]) not in ("", " ")
    assert len(tokenizer.encode(" " + " ".join(WORDS)).ids) == len(WORDS)
    config = json.loads((path / "config.json").read_text())
    assert tokenizer.id_to_token(config["eos_token_id"]) == "<|im_end|>"
    before = (path / "tokenizer.json").stat().st_mtime_ns
    assert write_model(tmp_path, shape) == path
    assert (path / "tokenizer.json").stat().st_mtime_ns == before


# --- results --------------------------------------------------------------------------------


def test_without_results_the_tables_say_that_nothing_ran() -> None:
    text = markdown({})
    assert "| 1, 128 to 256 " in text and "not run" in text and "15852" in text
    assert "What did not run" not in text


def test_ratios_are_to_the_same_run_and_to_earlier_figures(options: Options) -> None:
    results: dict[str, Any] = {}
    speeds = (("rows-lmserve", (160.0, 162.0)), ("rows-vllm", (150.0, 150.0)))
    for part, (first, second) in speeds:
        for name, speed in ((f"{part}-{LARGE}", first), (f"{part}-{LARGE}-2", second)):
            record = Record(options.file(name), name)
            record.figure("bs1_128_256", {"out_tok_s": speed, "total_tok_s": 9.0})
            record.close()
            results[name] = record.content
    broken = Record(options.file("check-linears"), "check-linears")
    broken.check("fp8", 0.5, 0.1)
    broken.close()
    text = markdown(results | {"check-linears": broken.content})
    (row,) = [line for line in text.splitlines() if line.startswith("| 1, 128 to 256 ")][:1]
    cells = [cell.strip() for cell in row.split("|")[2:6]]
    assert cells == ["161.0", "150.0", "1.07", "147.3"]
    assert "- check-linears: failed; checks failed\n  - fp8: error 0.5 over 0.1" in text


def test_a_step_is_busy_where_anything_runs() -> None:
    times = [(15.0, 16.0), (0.0, 4.0), (1.0, 2.0), (3.0, 6.0), (8.0, 9.0), (9.0, 10.0)]
    spans = [
        Span(began, ended, "short" if ended - began == 1 else "long") for began, ended in times
    ]
    told = per_step(spans, steps=2)
    assert (told["busy_us"], told["gap_us"], told["longest_gaps_us"]) == (4.5, 3.5, [5.0, 2.0])
    assert told["kernels_a_step"] == 3
    assert told["kernels"] == [
        {"name": "long", "us": 3.5, "calls": 1.0}, {"name": "short", "us": 2.0, "calls": 2.0}
    ]  # fmt: skip
    assert per_step([], 1)["busy_us"] == 0


# --- whole ----------------------------------------------------------------------------------


def test_rows_of_a_tiny_model(options: Options) -> None:
    record = Record(options.file("rows"), "rows")
    measure(options, record, engine="lmserve", shape=TINY)
    assert record.close() == "ok", record.content
    row = record.content["figures"]["prefill3_20_2"]
    assert row["out_tok"] == 6 and len(row["each_s"]) == 2
    assert row["total_tok_s"] == pytest.approx(66 / row["s"], rel=0.01)


@pytest.mark.slow
@pytest.mark.timeout(1300)
def test_everything_runs_on_a_tiny_model(tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "bench.gpu", "--device", "cpu", "--tiny", "--checkpoint"),
        *("--parts", "all", "--budget-s", "1200"),
        *("--out", str(tmp_path / "out"), "--models", str(tmp_path / "models")),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1250)
    assert done.returncode == 0, done.stdout
    results = json.loads((tmp_path / "out" / RESULTS).read_text())
    left_out = {name for name, part in results.items() if part["status"] == "left out"}
    assert left_out == {f"rows-vllm-{TINY}", "http-vllm"}
    assert results["check-attention"]["checks"] and results["check-models"]["checks"]
    shown = [*command[:3], "--markdown", str(tmp_path / "out" / RESULTS)]
    text = subprocess.run(shown, cwd=ROOT, capture_output=True, text=True, timeout=60).stdout
    assert "| attention | ok" in text


def test_the_options_reach_a_part_as_they_are(options: Options) -> None:
    again = json.loads(json.dumps(asdict(options)))
    assert Options(**again | {"shapes": tuple(again["shapes"])}) == options
    with pytest.raises(SystemExit, match="--shapes huge: known are"):
        replace(options, shapes=("huge",))
