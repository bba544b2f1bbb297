"""`lmserve bench throughput` and `latency` on a tiny model, as they are typed in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from lmserve.cli.main import cli
from tests.e2e.conftest import TinyModel, make_model

SMALL = "--dtype float32 --device cpu --threads 1 --num-blocks 64".split()
WORK = "--prompt-tokens 9 --max-tokens 5 --rounds 2 --repeats 0".split()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return make_model(tmp_path_factory.mktemp("llama"), "llama")


def measure(command: str, *args: str) -> Result:
    return CliRunner().invoke(cli, ["bench", command, *args], prog_name="lmserve")


def told(path: Path, bench: str) -> dict[str, Any]:
    document = json.loads(path.read_text())
    assert document["bench"] == bench
    assert document["machine"]["cores"] >= 1
    assert document["arguments"]["prompt_tokens"] == 9
    results: dict[str, Any] = document["results"]
    assert results["model"]["dtype"] == "float32"
    assert [each["num_attempts"] for each in results["rounds"]] == [1, 1]
    return results


def test_throughput(tiny: TinyModel, tmp_path: Path):
    path, profile = tmp_path / "out.json", tmp_path / "trace.json"
    result = measure(
        "throughput", str(tiny.path), *SMALL, *WORK, "--num-prompts", "3",
        "--json", str(path), "--profile", str(profile),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = [line.split("|")[1].strip() for line in result.stdout.splitlines() if "|" in line]
    assert rows[0] == "round" and rows[2:] == ["1", "2", "median", "spread"]
    results = told(path, "throughput")
    for each in results["rounds"]:
        assert (each["prompt_tokens"], each["output_tokens"]) == (27, 15)
        assert each["output_tok_s"] == pytest.approx(15 / each["wall_s"])
    assert results["output_tok_s"]["least"] <= results["output_tok_s"]["median"]
    names = {event["name"] for event in json.loads(profile.read_text())}
    spans = {"step", "schedule", "masks", "inputs", "forward", "logits", "sample", "commit"}
    assert spans < names


def test_latency(tiny: TinyModel, tmp_path: Path):
    path = tmp_path / "out.json"
    result = measure(
        "latency", str(tiny.path), *SMALL, *WORK, "--num-prompts", "2", "--json", str(path)
    )
    assert result.exit_code == 0, result.output
    assert "time to first token" in result.stdout
    results = told(path, "latency")
    for name in ("all_ttft_ms", "all_tpot_ms", "all_step_ms", "all_total_ms"):
        assert 0 < results[name]["p50"] <= results[name]["p99"]
    assert results["ttft_ms"]["median"] < results["total_ms"]["median"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["no-such-model"], "no such model: no-such-model"),
        (["--engine", "mock"], "engine is mock, which has no model to run here: leave it out"),
        (["--max-batch-size", "0"], "--max-batch-size must be a whole number at least 1"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_line(args: list[str], words: str):
    result = measure("throughput", *args)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: {words}")
