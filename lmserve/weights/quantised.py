"""A directory of safetensors whose weights are quantised: their parts put together, each under
the name that its weight would have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmserve.weights.base import Checkpoint, TokenizerAssets
from lmserve.weights.quant.float8 import FLOAT8

if TYPE_CHECKING:
    import torch

    from lmserve.weights.header import StoredTensor
    from lmserve.weights.quant.base import QuantisedTensor
    from lmserve.weights.quant.schemes import Scheme
    from lmserve.weights.safetensors import SafetensorsCheckpoint


class QuantisedCheckpoint(Checkpoint):
    def __init__(self, parts: SafetensorsCheckpoint, scheme: Scheme):
        self.path = parts.path
        self.config = parts.config
        self._parts = parts
        self._scheme = scheme
        self._held = frozenset(parts.names())
        found = (scheme.name_of(stored) for stored in parts.names())
        self._names = [name for name in found if name is not None]

    def names(self) -> list[str]:
        return list(self._names)

    def get(self, name: str) -> torch.Tensor | QuantisedTensor:
        return self._scheme.read(name, self._held, self._parts.get)

    def stored(self, name: str) -> StoredTensor | None:
        if name not in self._held:
            return None
        stored = self._parts.stored(name)
        return None if stored is None or stored.dtype == FLOAT8 else stored

    def tokenizer_assets(self) -> TokenizerAssets:
        return self._parts.tokenizer_assets()
