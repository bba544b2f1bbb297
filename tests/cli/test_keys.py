"""`lmserve keys`: a key is printed once, and its file is what a server takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lmserve.cli.main import cli
from lmserve.edge.key_file import digest_of, is_exposed, read_keys


def invoke(*args: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(cli, ("keys", *args), env={"LMSERVE_KEY_FILE": None, **(env or {})})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


def test_a_key_is_printed_once_and_its_digest_kept(path: Path):
    done = invoke(
        "new", "alice", "--requests-per-minute", "60", "--expires", "30", "--key-file", str(path)
    )
    assert done.exit_code == 0, done.output
    key = done.stdout.strip()
    assert re.fullmatch(r"sk-[\w-]{43}", key)
    assert "alice" in done.stderr and key not in done.stderr
    (kept,) = read_keys(path)
    assert (kept.digest, kept.limits.requests_per_minute) == (digest_of(key), 60)
    assert kept.scopes == {"use"} and not is_exposed(path)
    assert key not in path.read_text()
    other = invoke("new", "ops", "--scope", "admin", env={"LMSERVE_KEY_FILE": str(path)})
    assert other.stdout.strip() != key
    assert [kept.name for kept in read_keys(path)] == ["alice", "ops"]


def test_without_a_file_the_entry_is_shown():
    done = invoke("new", "alice", "--scope", "use", "--scope", "metrics", "--weight", "2.5")
    assert done.exit_code == 0
    digest = digest_of(done.stdout.strip()).hex()
    for line in ("[alice]", f'sha256 = "{digest}"', 'scopes = ["use", "metrics"]', "weight = 2.5"):
        assert f"\n{line}\n" in done.stderr


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["new", "a b"], "'a b' is no name for a key"),
        (["new", "a", "--weight", "0"], "weight must be a number between"),
        (["new", "a", "--max-requests", "0"], "max_requests must be a whole number above 0"),
        (["new", "a", "--expires", "soon"], "--expires soon: give a date"),
        (["list"], "no key file is set: give --key-file"),
        (["check", "--key-file", "/no/such/file"], "no such file"),
    ],
)
def test_refused_in_one_line(args: list[str], told: str):
    done = invoke(*args)
    assert (done.exit_code, done.stdout) == (1, "")
    assert told in done.stderr and done.stderr.count("\n") == 1


def test_list_and_check(path: Path):
    assert invoke("new", "old", "--expires", "2020-01-01", "--key-file", str(path)).exit_code == 0
    assert invoke("new", "ops", "--scope", "admin", "--key-file", str(path)).exit_code == 0
    listed = invoke("list", "--key-file", str(path)).stdout.splitlines()
    assert [line.split()[:2] for line in listed] == [
        ["name", "may"],
        ["old", "use"],
        ["ops", "admin"],
    ]
    assert listed[1].endswith("2020-01-01 00:00 UTC (expired)")
    path.chmod(0o644)
    checked = invoke("check", "--key-file", str(path))
    assert checked.stdout == f"{path}: 2 keys, 1 of them for administration\n"
    assert "chmod 600" in checked.stderr and "old has expired" in checked.stderr
    path.write_text("[a]\n")
    assert "line 1: [a] has no sha256" in invoke("check", "--key-file", str(path)).stderr
