"""A directory of safetensors as a checkpoint: shards mapped, tensors handed out as views."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from lmserve.errors import ModelError
from lmserve.weights.base import Checkpoint, TokenizerAssets
from lmserve.weights.header import StoredTensor, damaged, read_header

INDEX = "model.safetensors.index.json"


class SafetensorsCheckpoint(Checkpoint):
    def __init__(self, path: Path, cache: Path):
        self.path = path
        self.cache = cache
        self.config = read_config(path)
        files = shard_files(path)
        self._shards = {name: open_shard(path / name) for name in files}
        self._where = self._index(files)
        self._stored = {name: read_header(path / name) for name in files}

    def names(self) -> list[str]:
        return list(self._where)

    def get(self, name: str) -> torch.Tensor:
        shard = self._where.get(name)
        if shard is None:
            raise ModelError(
                f"{self.path} has no tensor {name}; its files are incomplete or of another "
                "architecture: download it again"
            )
        try:
            tensor: torch.Tensor = self._shards[shard].get_tensor(name)
        except SafetensorError as error:
            raise damaged(self.path / shard, error) from error
        return tensor

    def stored(self, name: str) -> StoredTensor | None:
        return self._stored[self._where[name]].get(name)

    def tokenizer_assets(self) -> TokenizerAssets:
        from lmserve.weights.tokenizer import directory_assets

        return directory_assets(self.path, self.config, self.cache)

    def _index(self, files: dict[str, list[str] | None]) -> dict[str, str]:
        """Each tensor and its shard, held to the index where there is one."""
        where: dict[str, str] = {}
        for shard, promised in files.items():
            held = set(self._shards[shard].keys())
            missing = set(promised or ()) - held
            if missing:
                raise ModelError(
                    f"{self.path / shard} lacks the tensor {min(missing)} that {INDEX} promises; "
                    "download it again"
                )
            where |= dict.fromkeys(sorted(held) if promised is None else promised, shard)
        return where


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from one of the model's files; empty where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"cannot read {path}: {reason}; download it again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} is not a JSON object; download it again")
    return value


def read_config(path: Path) -> dict[str, Any]:
    """config.json, with the spelling of older and newer transformers made one."""
    config = read_json(path / "config.json")
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        raise ModelError(
            f"{path / 'config.json'} is missing or names no architectures; "
            "give the directory of a causal language model"
        )
    rope = config.get("rope_parameters")
    if isinstance(rope, dict) and "rope_type" in rope:
        if "rope_theta" in rope:
            config.setdefault("rope_theta", rope["rope_theta"])
        scaled = rope["rope_type"] != "default"
        config.setdefault("rope_scaling", rope if scaled else None)
    return config


def shard_files(path: Path) -> dict[str, list[str] | None]:
    """The files to open, each with the tensors the index says it has (None: no index)."""
    weight_map = read_json(path / INDEX).get("weight_map")
    if weight_map is None:
        whole = path / "model.safetensors"
        found = [whole] if whole.is_file() else sorted(path.glob("*.safetensors"))
        kept = [file.name for file in found if not file.name.startswith("consolidated")]
        if not kept:
            raise ModelError(f"{path} has no .safetensors files; give a model saved as safetensors")
        return dict.fromkeys(kept)
    files: dict[str, list[str] | None] = {}
    for name, shard in weight_map.items():
        promised = files.setdefault(Path(str(shard)).name, [])
        assert promised is not None
        promised.append(name)
    return files


def open_shard(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing; download the model again") from error
    except (OSError, SafetensorError) as error:
        raise damaged(path, error) from error
