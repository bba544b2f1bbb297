"""Which weights: told from the files, and another where anything that is read differs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lmserve.errors import ModelError
from lmserve.weights import identity
from lmserve.weights.identity import WeightFiles


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(identity, "HEAD_BYTES", 100)
    monkeypatch.setattr(identity, "SAMPLE_BYTES", 8)
    monkeypatch.setattr(identity, "NUM_SAMPLES", 10)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(500))
    (tmp_path / "notes.txt").write_text("not of the model")
    set_times(tmp_path)
    return tmp_path


def set_times(folder: Path) -> None:
    for file in folder.iterdir():
        os.utime(file, ns=(0, 10**9))


def put(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)
    set_times(file.parent)


def test_the_same_files_are_the_same_model(model: Path) -> None:
    before = WeightFiles(model).digest()
    assert WeightFiles(model).digest() == before
    (model / "notes.txt").write_text("other")
    assert WeightFiles(model).digest() == before


@pytest.mark.parametrize("place", [0, 99, 100, 107, 180])
def test_other_bytes_are_another_model(model: Path, place: int) -> None:
    before = WeightFiles(model).digest()
    put(model / "model.safetensors", place)
    assert WeightFiles(model).digest() != before


def test_another_config_time_or_shard_is_another_model(model: Path) -> None:
    digests = {WeightFiles(model).digest()}
    (model / "config.json").write_text("[]")
    set_times(model)
    digests.add(WeightFiles(model).digest())
    os.utime(model / "model.safetensors", ns=(0, 10**9 + 1))
    digests.add(WeightFiles(model).digest())
    (model / "more.safetensors").write_bytes(b"")
    digests.add(WeightFiles(model).digest())
    (model / "more.safetensors").write_bytes(bytes(100))
    digests.add(WeightFiles(model).digest())
    assert len(digests) == 5


def test_files_that_changed_since_are_refused(model: Path) -> None:
    weights = WeightFiles(model)
    os.utime(model / "model.safetensors", ns=(0, 5))
    with pytest.raises(ModelError, match="changed after it was loaded"):
        weights.digest()
    (model / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot read"):
        weights.digest()


def test_a_file_alone_is_a_model(model: Path) -> None:
    file = model / "model.safetensors"
    before = WeightFiles(file).digest()
    assert WeightFiles(file).digest() == before
    put(file, 0)
    assert WeightFiles(file).digest() != before
