"""A model without its weights, to measure speed: its shape and its tokenizer are real."""

from __future__ import annotations

from pathlib import Path

import torch

from lmserve.errors import ModelError
from lmserve.weights.base import Checkpoint, TokenizerAssets
from lmserve.weights.safetensors import read_config


class DummyCheckpoint(Checkpoint):
    """Of a directory, only config.json and the tokenizer's files are read."""

    def __init__(self, path: Path, cache: Path):
        if not path.is_dir():
            raise ModelError(
                f"load_format is dummy, which {path} cannot be used for: give a directory with "
                "config.json and tokenizer.json"
            )
        self.path = path
        self.cache = cache
        self.config = read_config(path)
        if self.config.get("quantization_config"):
            raise ModelError(
                f"load_format is dummy, which knows no quantised weights as {path} has; leave "
                "'quantization_config' out of its config.json"
            )

    def names(self) -> list[str]:
        return []

    def get(self, name: str) -> torch.Tensor:
        raise ModelError(f"{self.path} was opened without its weights; set load_format to auto")

    def tokenizer_assets(self) -> TokenizerAssets:
        from lmserve.weights.tokenizer import directory_assets

        return directory_assets(self.path, self.config, self.cache)
