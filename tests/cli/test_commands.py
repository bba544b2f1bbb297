"""The command line: flags, refusals, exit codes; as a person types it where that matters."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import lmserve
from lmserve.cli.main import cli
from lmserve.fields import catalogue

ROOT = Path(__file__).resolve().parents[2]


def invoke(*args: str, env: Mapping[str, str] | None = None) -> Result:
    return CliRunner().invoke(cli, args, env=env, prog_name="lmserve")


def shown(*args: str, env: Mapping[str, str] | None = None) -> dict[str, dict[str, object]]:
    result = invoke("config", "show", "--json", *args, env=env)
    assert result.exit_code == 0, result.output
    values: dict[str, dict[str, object]] = json.loads(result.stdout)
    return values


def type_in(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lmserve", *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50)


def test_version():
    assert type_in("--version").stdout == f"lmserve {lmserve.__version__}\n"


def test_config_show_names_each_value_and_its_origin():
    values = shown("--threads", "2", env={"LMSERVE_DTYPE": "float32"})
    assert list(values) == list(catalogue())
    assert values["threads"] == {"value": 2, "origin": "flag --threads"}
    assert values["dtype"] == {"value": "float32", "origin": "environment LMSERVE_DTYPE"}
    assert values["server_port"] == {"value": 23333, "origin": "default"}


def test_config_show_prints_a_line_a_setting():
    lines = invoke("config", "show").stdout.splitlines()
    assert [line for line in lines if line.split() == ["server_port", "23333", "default"]]
    assert len(lines) == len(catalogue()) + len({f.section for f in catalogue().values()})


@pytest.mark.parametrize("spelling", ["--max-batch-size", "--max_batch_size", "--max-batch_size"])
@pytest.mark.parametrize("joined", [True, False])
def test_flags_take_underscores_for_dashes(spelling: str, joined: bool):
    args = [f"{spelling}=7"] if joined else [spelling, "7"]
    assert shown(*args)["max_batch_size"]["value"] == 7


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--no-restart", False), ("--no_restart", False), ("--restart", True)],
)
def test_truth_flags(flag: str, value: bool):
    assert shown(flag)["restart"] == {"value": value, "origin": "flag --restart"}


def test_every_setting_is_a_flag_of_the_server():
    text = invoke("serve", "api_server", "--help").stdout
    flags = {field.flag for field in catalogue().values() if field.name != "model"}
    assert {flag for flag in flags if f"{flag} " not in text} == set()


KEPT = ("Conversations", "Streams", "Conversations kept warm", "Files and batches")


@pytest.mark.parametrize(
    ("command", "groups"),
    [
        ("serve api_server", ["Options", "Server", "Access", "Limits", "Engine", *KEPT, "Log"]),
        ("config show", ["Options", "Server", "Access", "Limits", "Engine", *KEPT, "Log"]),
        ("chat", ["Options", "Engine", "Log"]),
        ("run", ["Options", "Engine", "Log"]),
        ("bench throughput", ["Options", "Engine", "Log"]),
    ],
)
def test_the_help_has_a_group_for_each_section(command: str, groups: list[str]):
    lines = invoke(*command.split(), "--help").stdout.splitlines()
    titles = [line.removesuffix(":") for line in lines if re.fullmatch(r"\S.*:", line)]
    assert [title for title in titles if not title.startswith(("Usage", "LMDeploy"))] == groups
    rows = [line.split()[0] for line in lines if re.match(r"  \S", line) and line[2] in "-["]
    assert [row for row in rows if not row.startswith("-")] == []  # MODEL is no option


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--server-port", "99999"], "--server-port must be a whole number"),
        (["--config", "absent.toml"], "absent.toml: cannot read the settings file"),
        (["--tp", "2"], "--tp 2: tensor parallelism is not supported yet"),
    ],
)
def test_a_refused_setting_is_one_line_and_exit_1(args: list[str], message: str):
    result = type_in("serve", "api_server", *args)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith(f"Error: {message}")
    assert result.stderr.count("\n") == 1


def test_an_unknown_flag_is_refused():
    result = invoke("serve", "api_server", "--server-prot", "1")
    assert result.exit_code == 2
    assert "--server-port" in result.stderr


def test_the_command_line_imports_nothing_heavy():
    heavy = ["torch", "transformers", "aiohttp", "numpy"]
    check = f"import sys, lmserve.cli.main; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, timeout=50
    )
    assert result.stdout == "[]\n", result.stderr
