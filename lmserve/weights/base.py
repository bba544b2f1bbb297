"""What every checkpoint offers, whatever file it comes from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from lmserve.weights.header import StoredTensor
    from lmserve.weights.quant.base import QuantisedTensor


@dataclass(frozen=True, slots=True)
class TokenizerAssets:
    """Everything the server needs to turn text into token ids and back."""

    tokenizer_file: Path  # a tokenizers `tokenizer.json`
    chat_template: str | None = None
    bos_token: str | None = None
    eos_token: str | None = None
    eos_token_ids: tuple[int, ...] = ()
    add_bos: bool = False  # plain text prompts get a BOS that the tokenizer does not add
    generation_defaults: dict[str, float] = field(default_factory=dict)


class Checkpoint(ABC):
    """One model on disk, under Hugging Face's names. Tensors are views on the mapped file:
    whoever keeps one keeps the mapping alive."""

    path: Path
    config: dict[str, Any]  # the vocabulary of `config.json`

    @abstractmethod
    def names(self) -> list[str]:
        """All tensors, under Hugging Face's names."""

    @abstractmethod
    def get(self, name: str) -> torch.Tensor | QuantisedTensor:
        """One tensor as it is stored: quantised blocks stay quantised. Do not write to it.

        Raises ModelError when the file does not hold it.
        """

    def stored(self, name: str) -> StoredTensor | None:
        """Where the values of a tensor lie, for whoever reads them otherwise; None where they
        are not plain values in a file."""
        return None

    @abstractmethod
    def tokenizer_assets(self) -> TokenizerAssets:
        """The model's tokenizer and what belongs to it, converted and cached where needed."""
