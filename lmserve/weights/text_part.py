"""The language model inside a checkpoint that also sees: its settings and tensors alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmserve.weights.base import Checkpoint, TokenizerAssets

if TYPE_CHECKING:
    import torch

    from lmserve.weights.header import StoredTensor
    from lmserve.weights.quant.base import QuantisedTensor

#: how names begin inside, as first published and as transformers saves them now; and alone
PREFIXES = {
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.language_model.": "model.",
    "lm_head.": "lm_head.",
}


class TextPart(Checkpoint):
    def __init__(self, whole: Checkpoint):
        self.whole = whole
        text = whole.config.get("text_config") or {}
        self.config = {**text, "architectures": whole.config["architectures"]}
        self._names = {
            alone + name.removeprefix(inside): name
            for name in whole.names()
            for inside, alone in PREFIXES.items()
            if name.startswith(inside)
        }

    def names(self) -> list[str]:
        return list(self._names)

    def get(self, name: str) -> torch.Tensor | QuantisedTensor:
        return self.whole.get(self._names[name])

    def stored(self, name: str) -> StoredTensor | None:
        return self.whole.stored(self._names[name])

    def tokenizer_assets(self) -> TokenizerAssets:
        return self.whole.tokenizer_assets()
