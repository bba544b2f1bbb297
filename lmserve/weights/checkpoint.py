"""The one way to open a model on disk, in the engine process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmserve.weights.base import Checkpoint, TokenizerAssets

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Checkpoint", "TokenizerAssets", "open_checkpoint"]


def open_checkpoint(path: Path, cache: Path, load_format: str = "auto") -> Checkpoint:
    """Opens a directory of safetensors or a GGUF file, as `files.resolve` found it.

    `cache` is where a converted tokenizer is kept. Raises ModelError when the model is damaged
    or not supported.
    """
    if load_format == "dummy":
        from lmserve.weights.dummy import DummyCheckpoint

        return DummyCheckpoint(path, cache)
    if path.is_dir():
        return _open_directory(path, cache)
    from lmserve.weights.gguf import GGUFCheckpoint

    return GGUFCheckpoint(path, cache)


def _open_directory(path: Path, cache: Path) -> Checkpoint:
    from lmserve.weights.quant.schemes import read_scheme
    from lmserve.weights.quantised import QuantisedCheckpoint
    from lmserve.weights.safetensors import SafetensorsCheckpoint, read_config

    scheme = read_scheme(path, read_config(path))  # before its files are looked into
    parts = SafetensorsCheckpoint(path, cache)
    return parts if scheme is None else QuantisedCheckpoint(parts, scheme)
