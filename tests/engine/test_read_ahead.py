"""Files that are read into the system's memory before anybody needs them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lmserve.engine import read_ahead
from lmserve.engine.read_ahead import begin_reading
from lmserve.settings import EngineSettings


def read(model: Path, load_format: str = "auto") -> int:
    threads = begin_reading(EngineSettings(model=str(model), load_format=load_format))
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return len(threads)


def forgotten(path: Path) -> Path:
    """Out of the system's memory, where the file system has any other."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return path


def is_cached(path: Path) -> bool:
    with path.open("rb") as file:
        return read_ahead._is_cached(file.fileno(), 0)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    for name in ("a.safetensors", "b.safetensors", "consolidated.safetensors", "other.bin"):
        (tmp_path / name).write_bytes(bytes(5 * 2**20))
    return tmp_path


def test_a_models_files_and_no_others(model: Path) -> None:
    for file in model.iterdir():
        forgotten(file)
    if is_cached(model / "other.bin"):
        pytest.skip("this file system has no memory but the system's")
    assert read(model) == 2
    cached = {file.name for file in model.iterdir() if is_cached(file)}
    assert cached == {"a.safetensors", "b.safetensors"}


def test_one_file(model: Path) -> None:
    assert read(forgotten(model / "other.bin")) == 1
    assert is_cached(model / "other.bin")


def test_what_does_not_fit_is_left(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_ahead, "available_memory", lambda: 10 * 2**20)
    assert read(model) == 0


def test_nothing_to_read(model: Path) -> None:
    assert read(model, "dummy") == 0
    assert begin_reading(EngineSettings()) == []
    assert read(model / "nowhere") == 0
    for file in model.iterdir():
        file.chmod(0)
    read(model)  # what cannot be read is told by whoever needs it
