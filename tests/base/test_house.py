"""Makefile, packaging and CI agree with each other."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import lmserve

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout without a .venv: what make would do in a fresh clone."""
    for name in ("Makefile", "pyproject.toml", "setup.py", "clients/python/pyproject.toml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def make(tree: Path, *args: str) -> str:
    command = ["make", "--no-print-directory", *args]
    return subprocess.run(
        command, cwd=tree, check=True, capture_output=True, text=True, timeout=30
    ).stdout


def test_make_alone_lists_the_targets(tree: Path):
    text = make(tree)
    targets = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"serve", "test", "venv"} <= set(targets)
    assert [name for name in targets if f"make {name} " not in text] == []


def test_make_serve_sets_up_and_serves(tree: Path):
    steps = make(tree, "-n", "serve", "ARGS=--server-port 0")
    order = ["python3 -m venv .venv", "torch_size.py 'torch==", "--editable '.[cpu]'"]
    order.append(".venv/bin/lmserve serve api_server --server-port 0")
    places = [steps.index(step) for step in order]
    assert places == sorted(places)
    assert "[cpu,dev]" not in steps


def test_the_torch_index_is_used_for_torch_only(tree: Path):
    steps = make(tree, "-n", "serve", "TORCH_INDEX_URL=https://index.example/cpu")
    lines = [line for line in steps.splitlines() if "index.example" in line and "pip" in line]
    assert len(lines) == 1
    assert "'torch==2.13.0'" in lines[0]


def test_make_test_checks_before_it_tests(tree: Path):
    steps = make(tree, "-n", "test", "ARGS=-x")
    order = ["'.[cpu,dev]'", "ruff check", "ruff format --check", "mypy", "lint-imports"]
    order.append("bin/pytest -n auto")
    places = [steps.index(step) for step in order]
    assert places == sorted(places)
    assert steps.rstrip().endswith(" -x")


def test_a_set_up_tree_is_not_set_up_again(tree: Path):
    (tree / ".venv" / "bin").mkdir(parents=True)
    for name in ("bin/python", ".ready-to-serve", ".ready-to-develop"):
        (tree / ".venv" / name).touch()
    steps = make(tree, "-n", "serve")
    assert steps.split() == [".venv/bin/lmserve", "serve", "api_server"]


def test_a_venv_that_fails_leaves_nothing_behind(tree: Path):
    python = tree / "python"
    python.write_text(
        "#!/bin/sh\n"
        'case "$*" in "-m venv "*) mkdir -p "$3/bin"; touch "$3/bin/python"; exit 1;; esac\n'
    )
    python.chmod(0o755)
    with pytest.raises(subprocess.CalledProcessError):
        make(tree, "venv", f"PYTHON={python}")
    assert not (tree / ".venv").exists()


@pytest.mark.parametrize(
    ("version", "there"), [("2.13.0", True), ("2.13.0+cpu", True), ("2.12.1", False), (None, False)]
)
def test_torch_is_there_only_in_its_pinned_version(tree: Path, version: str | None, there: bool):
    """The check that make prints, run where torch has this version."""
    steps = make(tree, "-n", "serve")
    check = re.search(r"-c '(from importlib.*?)' 2>", steps, re.DOTALL)
    assert check is not None
    if version is not None:
        info = tree / f"torch-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: torch\nVersion: {version}\n")
    command = [sys.executable, "-S", "-c", check[1]]
    assert (subprocess.run(command, cwd=tree, capture_output=True).returncode == 0) == there


def test_ci_runs_make_test():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert script.read_text().rstrip().endswith("make test")


def test_the_server_installs_without_torch():
    names = {re.split(r"[<>=\[]", item)[0] for item in PROJECT["project"]["dependencies"]}
    assert names.isdisjoint({"torch", "transformers", "numpy", "gguf", "safetensors"})
    extras = PROJECT["project"]["optional-dependencies"]
    assert "torch==2.13.0" in extras["cpu"]
    assert not any("==" in item for item in extras["cuda"])


def test_the_change_log_knows_this_version_or_what_comes():
    text = (ROOT / "CHANGELOG.md").read_text()
    assert "## [Unreleased]" in text
    assert re.fullmatch(r"\d+\.\d+\.\d+", lmserve.__version__)


def test_the_readme_opens_with_the_two_commands():
    opening = (ROOT / "README.md").read_text()[:600]
    assert "make serve" in opening and "make test" in opening
