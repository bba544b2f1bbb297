"""The one way to open a model on disk, in the engine process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmserve.weights.base import Checkpoint, TokenizerAssets

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Checkpoint", "TokenizerAssets", "open_checkpoint"]


def open_checkpoint(path: Path, cache: Path) -> Checkpoint:
    """Opens a directory of safetensors or a GGUF file, as `files.resolve` found it.

    `cache` is where a converted tokenizer is kept. Raises ModelError when the model is damaged
    or not supported.
    """
    if path.is_dir():
        from lmserve.weights.safetensors import SafetensorsCheckpoint

        return SafetensorsCheckpoint(path, cache)
    from lmserve.weights.gguf import GGUFCheckpoint

    return GGUFCheckpoint(path, cache)
