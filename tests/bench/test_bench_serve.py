"""`lmserve bench serve`: what is noted as it comes, and the tables that are made of it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lmserve.bench.machine import Load
from lmserve.bench.ratios import best, ratio
from lmserve.bench.records import Begun, Lived, Measured, read, write
from lmserve.bench.summary import Figures
from lmserve.bench.workload import NAMED
from lmserve.cli.main import cli
from tests.bench.servers import faking

QUIET, BUSY = Load(10.0, 1.9, 0.01, 0.0), Load(10.0, 1.0, 0.9, 0.0)
ORDER = ("ours", "fast", "slow")


def invoke(*args: str) -> Result:
    return CliRunner().invoke(cli, ["bench", *args], prog_name="lmserve")


def figures(tok_s: float, ok: int = 6) -> Figures:
    times = {"p50": 12.0, "p95": 150.0, "p99": 1500.0}
    counts = {"prompt_tokens_mean": 128, "cached_tokens_mean": 0, "output_tokens_mean": 128}
    return Figures(
        ok=ok,
        errors=6 - ok,
        wall_s=10.0,
        output_tok_s=tok_s,
        total_tok_s=2 * tok_s,
        req_s=tok_s / 128,
        **counts,
        pieces_mean=128,
        counted_by="usage",
        ttft_ms=times,
        itl_ms=times,
        tpot_ms=times,
        e2e_ms=times,
        error_kinds={"timeout": 6 - ok} if ok < 6 else {},
    )


def measured(server: str, number: int, tok_s: float, load: Load = QUIET, ok: int = 6) -> Measured:
    return Measured(server, number, NAMED["a"], 0, load, 0.05, figures(tok_s, ok))


@pytest.fixture
def noted(tmp_path: Path) -> str:
    """Two rounds of three servers."""
    path = str(tmp_path / "noted.jsonl")
    write(path, Begun({}, dict.fromkeys(ORDER, "serve --port {port}"), "1"))
    for number, speeds in enumerate([(150.0, 100.0, 50.0), (120.0, 100.0, 50.0)]):
        for server, tok_s in zip(ORDER, speeds, strict=True):
            write(path, measured(server, number, tok_s))
            write(path, Lived(server, number, start_s=1.5 + number, start_load=QUIET, pss_mib=1000))
    return path


def test_one_row_compares_the_first_to_the_best_of_the_others(noted: str):
    lines = invoke("serve", "--from", noted, "--table").output.splitlines()
    row = next(line for line in lines if line.startswith("| a: 1 user, 128/128"))
    assert [cell.strip() for cell in row.split("|")[2:-1]] == [
        "135.0 (120.0–150.0)",
        "100.0 (100.0–100.0)",
        "50.0 (50.0–50.0)",
        "1.35 (1.20–1.50), fast",
    ]
    assert any(
        line.startswith("| start to first answer, s") and "2.0 (1.5" in line for line in lines
    )


def test_several_of_ours_are_compared_to_the_peers_named(noted: str):
    lines = invoke("serve", "--from", noted, "--table", "--peer", "slow").output.splitlines()
    row = next(line for line in lines if line.startswith("| a: 1 user, 128/128"))
    assert [cell.strip() for cell in row.split("|")[-3:-1]] == [
        "2.70 (2.40–3.00), slow",
        "2.00 (2.00–2.00), slow",
    ]
    refused = invoke("serve", "--from", noted, "--peer", "gone")
    assert refused.exit_code == 1 and "--peer gone: no --server has this name" in refused.output


def test_files_of_several_runs_are_rounds_of_one(noted: str, tmp_path: Path):
    more = str(tmp_path / "more.jsonl")
    write(more, Begun({}, dict.fromkeys(ORDER, "serve --port {port}"), "2"))
    write(more, measured("ours", 0, 300.0))
    write(more, measured("fast", 0, 100.0))
    Path(more).write_bytes(Path(more).read_bytes() + b'{"record":"run","server":"sl')  # cut short
    records = read([noted, more])
    assert list(records.runs("ours", "a")) == [0, 1, 2]
    assert list(records.runs("slow", "a")) == [0, 1]


def test_of_several_attempts_the_least_disturbed_counts(noted: str):
    write(noted, measured("ours", 0, 999.0, BUSY))
    records = read([noted])
    assert records.runs("ours", "a")[0].figures.output_tok_s == 150.0
    write(noted, measured("fast", 2, 70.0, BUSY))
    output = invoke("serve", "--from", noted).output
    assert "100.0, 100.0, 70.0*" in output and "* other work used" in output


def test_errors_are_shown_and_make_no_ratio(noted: str):
    write(noted, measured("ours", 2, 0.0, ok=0))
    write(noted, measured("fast", 2, 100.0))
    write(noted, Lived("slow", 2, error="ended with status 1"))
    output = invoke("serve", "--from", noted).output
    assert "- 6 × ours: timeout" in output and "- slow, round 3: ended with status 1" in output
    assert "1.35 (1.20–1.50)" in output


def test_ratios_are_of_rounds_that_both_have():
    found = ratio({0: 3.0, 1: 8.0, 2: 1.0}, {0: 1.0, 1: 2.0, 3: 9.0})
    assert str(found) == "3.50 (3.00–4.00)"
    assert ratio({0: 1.0}, {1: 1.0}) is None
    assert best({"a": {0: 1.0}, "b": {0: 2.0, 1: 0.5}, "c": {}}) == "b"
    assert best({}) is None


async def test_a_server_is_measured_from_the_command_line(tmp_path: Path):
    path = str(tmp_path / "noted.jsonl")
    async with faking() as fake:
        result = await asyncio.to_thread(
            invoke,
            *("serve", "--server", f"fake={fake.url}", "--rounds", "1", "--workload", "a,e"),
            *("--requests", "2", "--max-tokens", "3", "--slo", "e2e=60000", "--json", path),
            *("--quiet-wait-s", "0", "--repeats", "0", "--extra", '{"top_k": 1}'),
        )
        assert {body["model"] for body in fake.bodies} == {"fake"}
        assert {body["top_k"] for body in fake.bodies} == {1}
    assert result.exit_code == 0, result.output
    assert "**e: 8 users, shared 1,000 + 32/3, 2 requests**" in result.stdout
    assert "100.0%" in result.stdout  # within the SLO
    assert [work.name for work in read([path]).workloads] == ["a", "e"]


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ([], "at least one --server"),
        (["--server", "x"], "NAME=COMMAND or NAME=http://HOST:PORT"),
        (["--server", "x=serve"], "add --port {port}"),
        (["--server", "x=http://a", "--server", "x=http://b"], "same name"),
        (["--server", "x=http://a", "--workload", "f"], "no workload 'f'"),
        (["--server", "x=http://a", "--slo", "ttft"], "NAME=MILLISECONDS"),
        (["--server", "x=http://a", "--slo", "ttft=-3"], "NAME=MILLISECONDS"),
        (["--server", "x=http://a", "--slo", "itl=nan"], "NAME=MILLISECONDS"),
        (["--server", "x=http://a", "--extra", "[]"], "not a JSON object"),
        (["--from", "/nowhere/x.jsonl"], "/nowhere/x.jsonl"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_line(args: list[str], told: str):
    result = invoke("serve", *args)
    assert result.exit_code == 1
    assert told in result.output and len(result.output.splitlines()) == 1


@pytest.mark.parametrize(
    ("option", "value"),
    [("--rate", "0"), ("--duration-s", "-1"), ("--start-limit-s", "0"), ("--warmup", "-1"),
     ("--repeats", "-1"), ("--request-timeout-s", "0"), ("--quiet-wait-s", "-1")],
)  # fmt: skip
def test_numbers_out_of_range_are_refused(option: str, value: str):
    result = invoke("serve", "--server", "x=http://127.0.0.1:1", option, value)
    assert result.exit_code == 2
    assert f"Invalid value for '{option}'" in result.output


def test_a_server_that_never_answers_is_a_failure():
    result = invoke("startup", "--server", "gone=http://127.0.0.1:1", "--rounds", "1")
    assert result.exit_code == 1
    assert "gone, round 1: http://127.0.0.1:1 does not answer" in result.stdout
