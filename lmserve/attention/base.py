"""The interface of attention over paged KV.

A backend is built for one cache shape and one device, bound once to the cache's tensors, and
then called per step: `prepare` turns the rows of a step into metadata (indices, masks) that
all layers share; `forward` writes the new keys and values of one layer and attends.

One layer's keys, and likewise its values, are one tensor (num_blocks, num_kv_heads,
block_size, head_dim): seen as (num_blocks * num_kv_heads, block_size * head_dim), one
index_select with `block * num_kv_heads + head` gathers (sequence, head, context, head_dim).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch


@dataclass(frozen=True, slots=True)
class CacheShape:
    """The shape of the KV cache, the same on every layer."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    block_size: int


@dataclass(frozen=True, slots=True)
class AttentionOptions:
    """What differs between the layers of one model."""

    scale: float
    window: int | None = None  # a query sees this many positions, its own included
    softcap: float | None = None  # scores become cap * tanh(score / cap)


@dataclass(frozen=True, slots=True)
class AttentionBatch:
    """The rows of a step: row i runs `lens[i]` tokens from position `starts[i]` on."""

    starts: Sequence[int]
    lens: Sequence[int]
    blocks: Sequence[Sequence[int]]  # block tables; each covers start + len tokens


@dataclass(slots=True)
class Metadata:
    """What all layers of a step share. `slots` are rows of the cache seen as
    (num_blocks * num_kv_heads * block_size, head_dim), one for each (token, kv head)."""

    batch: AttentionBatch
    slots: torch.Tensor


class AttentionBackend(ABC):
    name: ClassVar[str]

    def __init__(self, shape: CacheShape, dtype: torch.dtype, device: torch.device):
        self.shape = shape
        self.dtype = dtype
        self.device = device
        self.kv: Sequence[tuple[torch.Tensor, torch.Tensor]] = ()

    def bind(self, kv: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Takes the cache: keys and values of each layer."""
        self.kv = kv

    @abstractmethod
    def prepare(self, batch: AttentionBatch) -> Metadata:
        """Metadata of one step, valid until the next `prepare`."""

    @abstractmethod
    def attend(
        self, q: torch.Tensor, layer: int, options: AttentionOptions, metadata: Metadata
    ) -> torch.Tensor:
        """Attention of q (T, heads, head_dim) over what the cache holds; the same shape."""

    def forward(
        self,
        q: torch.Tensor,  # (T, heads, head_dim)
        k: torch.Tensor,  # (T, kv heads, head_dim), as is v
        v: torch.Tensor,
        layer: int,
        options: AttentionOptions,
        metadata: Metadata,
    ) -> torch.Tensor:
        """Writes the step's keys and values, then attends: causal, over the row's context."""
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


def token_rows(batch: AttentionBatch) -> np.ndarray:
    """The row of each token of the step."""
    return np.repeat(np.arange(len(batch.lens)), np.asarray(batch.lens, dtype=np.int64))


def token_positions(batch: AttentionBatch) -> np.ndarray:
    """The position of each token in its own sequence."""
    lens = np.asarray(batch.lens, dtype=np.int64)
    shift = np.asarray(batch.starts, dtype=np.int64) - (np.cumsum(lens) - lens)
    return np.arange(lens.sum(), dtype=np.int64) + np.repeat(shift, lens)


def block_table(batch: AttentionBatch) -> np.ndarray:
    """Block tables as one array. A short one is filled up with its own first block: what it
    gathers there is masked, and can never be another sequence's bad number."""
    width = max(len(blocks) for blocks in batch.blocks)
    table = np.empty((len(batch.blocks), width), dtype=np.int64)
    for line, blocks in zip(table, batch.blocks, strict=True):
        line[: len(blocks)] = blocks
        line[len(blocks) :] = blocks[0]
    return table
