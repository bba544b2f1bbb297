"""What the runner needs of a model, whoever wrote it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch

from lmserve.attention.base import AttentionBackend, AttentionOptions, CacheShape, Metadata


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a loaded model says of itself. `cache` lacks only the block size."""

    architecture: str
    vocab_size: int
    max_positions: int
    num_parameters: int
    hidden_size: int
    weights: str  # for people: "int4 (q4_1) + float32"
    dtype: str  # of activations
    cache: CacheShape
    attention: tuple[AttentionOptions, ...] = ()  # what its layers ask for, each once


class Model(ABC):
    capturable: ClassVar[bool] = False  # a graph may capture what it does
    info: ModelInfo
    attention: AttentionBackend

    def bind(self, attention: AttentionBackend, max_positions: int) -> None:
        """Takes the attention over the KV cache, and the longest context it will see."""
        self.attention = attention

    @abstractmethod
    def forward(
        self,
        token_ids: torch.Tensor,  # (T): the tokens of all rows of a step, one after another
        positions: torch.Tensor,  # (T)
        metadata: Metadata,  # of `self.attention`
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states (T, hidden) for the two below; and (T) of each token, whether all that
        was computed for it is finite: its KV must not reach others if it is not."""

    @abstractmethod
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(S, vocab) of some of the hidden states, (S, hidden)."""

    @abstractmethod
    def normed(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states as the head sees them, what transformers calls the last."""
