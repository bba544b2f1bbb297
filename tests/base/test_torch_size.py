"""scripts/torch_size.py with pip's answer written down here, wheels of known sizes beside it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def torch_size() -> ModuleType:
    spec = importlib.util.spec_from_file_location("torch_size", ROOT / "scripts" / "torch_size.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def pip_answers(tmp_path: Path, torch_size: ModuleType, monkeypatch: pytest.MonkeyPatch):
    """Stands in for the interpreter whose pip is asked: a program that prints the report."""

    def answer(status: int = 0, **sizes: int | None) -> None:
        installs = []
        for name, size in sizes.items():
            wheel = tmp_path / f"{name}.whl"
            if size is not None:
                with wheel.open("wb") as file:
                    file.truncate(size)
            metadata = {"name": name.replace("_", "-")}
            installs.append({"metadata": metadata, "download_info": {"url": wheel.as_uri()}})
        report = tmp_path / "report.json"
        report.write_text(json.dumps({"version": "1", "install": installs}))
        program = tmp_path / "python"
        program.write_text(
            f'#!/bin/sh\necho "$@" > {tmp_path}/asked\ncat {report}\nexit {status}\n'
        )
        program.chmod(0o755)
        monkeypatch.setattr(torch_size.sys, "executable", str(program))

    return answer


def test_a_cuda_build_is_announced_with_its_size_and_the_remedy(
    torch_size, pip_answers, tmp_path, capsys
):
    pip_answers(torch=800_000_000, nvidia_cublas=400_000_000, sympy=6_000_000)
    torch_size.main("torch==1.2.3")
    text = capsys.readouterr().out
    assert "pip is about to fetch torch==1.2.3 as 3 packages, 1.2 GB" in text
    assert "make serve TORCH_INDEX_URL=" in text
    assert "://" not in text  # no host is named
    asked = (tmp_path / "asked").read_text()
    assert "--dry-run" in asked and asked.endswith("torch==1.2.3\n")


@pytest.mark.parametrize("package", ["triton", "cuda_bindings"])
def test_other_cuda_packages_are_known(torch_size, pip_answers, capsys, package):
    pip_answers(**{"torch": 10, package: 10})
    torch_size.main("torch")
    assert "2 packages" in capsys.readouterr().out


def test_a_size_not_told_makes_the_sum_a_lower_bound(torch_size, pip_answers, capsys):
    pip_answers(torch=2_000_000_000, triton=None)
    torch_size.main("torch")
    assert "at least 2.0 GB" in capsys.readouterr().out


def test_a_cpu_build_is_not_worth_a_word(torch_size, pip_answers, capsys):
    pip_answers(torch=200_000_000, sympy=6_000_000)
    torch_size.main("torch")
    assert capsys.readouterr().out == ""


def test_a_pip_that_cannot_answer_stops_nothing(torch_size, pip_answers, capsys):
    pip_answers(status=1)
    torch_size.main("torch")
    assert capsys.readouterr().out == ""
