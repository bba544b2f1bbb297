"""Where compiled kernels are kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lmserve.engine.loader import keep_compiled

VARIABLE = "TRITON_CACHE_DIR"


def test_beside_the_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")  # put back at the end
    monkeypatch.delenv(VARIABLE)
    keep_compiled(tmp_path / "cache")
    assert os.environ[VARIABLE] == str(tmp_path / "cache" / "triton")
    assert (tmp_path / "cache" / "triton").is_dir()


def test_a_users_choice_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "elsewhere")
    keep_compiled(tmp_path)
    assert os.environ[VARIABLE] == "elsewhere"


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.delenv(VARIABLE)
    (tmp_path / "cache").write_bytes(b"")
    keep_compiled(tmp_path / "cache")
    assert VARIABLE not in os.environ
