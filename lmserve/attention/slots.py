"""What the torch backends share: keys and values are written by index, then attended."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
import torch

from lmserve.attention.base import (
    AttentionBackend,
    AttentionBatch,
    AttentionOptions,
    Metadata,
    token_positions,
    token_rows,
)


@dataclass(slots=True)
class SlotMetadata(Metadata):
    """`slots` are rows of the cache seen as (num_blocks * num_kv_heads * block_size, head_dim),
    one for each (token, kv head)."""

    batch: AttentionBatch
    slots: torch.Tensor


class SlotAttention(AttentionBackend):
    @abstractmethod
    def attend(
        self, q: torch.Tensor, layer: int, options: AttentionOptions, metadata: Metadata
    ) -> torch.Tensor:
        """Attention of q (T, heads, head_dim) over what the cache holds; the same shape."""

    def forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: int,
        options: AttentionOptions,
        metadata: Metadata,
    ) -> torch.Tensor:
        assert isinstance(metadata, SlotMetadata)
        head_dim = self.shape.head_dim
        keys, values = self.kv[layer]
        keys.view(-1, head_dim).index_copy_(0, metadata.slots, k.reshape(-1, head_dim))
        values.view(-1, head_dim).index_copy_(0, metadata.slots, v.reshape(-1, head_dim))
        return self.attend(q, layer, options, metadata)

    def slots(self, batch: AttentionBatch, table: np.ndarray) -> torch.Tensor:
        """Where the step's keys and values go."""
        block_size, num_kv_heads = self.shape.block_size, self.shape.num_kv_heads
        row, position = token_rows(batch), token_positions(batch)
        first = table[row, position // block_size] * num_kv_heads * block_size
        slots = (first + position % block_size)[:, None]
        slots = slots + np.arange(num_kv_heads) * block_size
        return torch.from_numpy(slots.reshape(-1)).to(self.device)
