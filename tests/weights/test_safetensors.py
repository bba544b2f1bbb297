"""Directories of safetensors: whole, sharded and damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lmserve.errors import ModelError
from lmserve.weights.checkpoint import open_checkpoint

from .conftest import hf_tensors

WriteDirectory = Callable[..., Path]


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        open_checkpoint(path, path)
    assert "\n" not in caught.value.message
    assert str(path) in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("shards", [1, 3])
def test_every_tensor_comes_back(write_directory: WriteDirectory, shards: int) -> None:
    checkpoint = open_checkpoint(write_directory(shards=shards), Path())
    expected = hf_tensors()
    assert sorted(checkpoint.names()) == sorted(expected)
    for name, value in expected.items():
        assert torch.equal(checkpoint.get(name), torch.from_numpy(value))


def test_shards_without_an_index(write_directory: WriteDirectory) -> None:
    path = write_directory(shards=2)
    (path / "model.safetensors.index.json").unlink()
    assert sorted(open_checkpoint(path, path).names()) == sorted(hf_tensors())


@pytest.mark.parametrize(
    ("given", "theta", "scaling"),
    [
        ({"rope_theta": 5.0, "rope_scaling": None}, 5.0, None),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}, 5.0, None),
        (
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 5.0, "factor": 2.0}},
            5.0,
            {"rope_type": "linear", "rope_theta": 5.0, "factor": 2.0},
        ),
    ],
)
def test_old_and_new_spelling_of_rope(
    write_directory: WriteDirectory, given: dict[str, Any], theta: float, scaling: Any
) -> None:
    config = open_checkpoint(write_directory(config=given), Path()).config
    assert (config["rope_theta"], config["rope_scaling"]) == (theta, scaling)


def test_truncated_and_garbled_shards(write_directory: WriteDirectory) -> None:
    path = write_directory()
    file = path / "model.safetensors"
    whole = file.read_bytes()
    for damaged in (whole[:-100], whole[:50], whole[:4], b"", b"\xff" * 64):
        file.write_bytes(damaged)
        message = refusal(path)
        assert "model.safetensors is damaged" in message
        assert "download it again" in message


def test_a_shard_that_is_missing_or_lacks_a_tensor(write_directory: WriteDirectory) -> None:
    path = write_directory(shards=2)
    index = path / "model.safetensors.index.json"
    promised = json.loads(index.read_text())
    promised["weight_map"]["model.extra.weight"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(promised))
    assert "lacks the tensor model.extra.weight" in refusal(path)
    (path / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors is missing" in refusal(path)
    index.write_text("{")
    assert "cannot read" in refusal(path)


def test_a_config_we_cannot_use(write_directory: WriteDirectory) -> None:
    path = write_directory()
    (path / "config.json").write_text('{"hidden_size": 4}')
    assert "names no architectures" in refusal(path)
    (path / "config.json").write_text("[1]")
    assert "not a JSON object" in refusal(path)
    quantised = {"architectures": ["A"], "quantization_config": {"quant_method": "hqq"}}
    (path / "config.json").write_text(json.dumps(quantised))
    assert "quantised with hqq, which lmserve does not read; give" in refusal(path)


def test_a_tensor_that_is_not_there(write_directory: WriteDirectory) -> None:
    with pytest.raises(ModelError, match="no tensor model.nothing"):
        open_checkpoint(write_directory(), Path()).get("model.nothing")
