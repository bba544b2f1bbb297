"""The interface of attention over paged KV.

A backend is built for one cache shape and one device, bound once to the cache's tensors, and
then called per step: `prepare` turns the rows of a step into metadata (indices, masks) that
all layers share; `forward` writes the new keys and values of one layer and attends.

One layer's keys, and likewise its values, are one tensor, in one of two layouts. Heads first,
(num_blocks, num_kv_heads, block_size, head_dim), is the processor's: seen as
(num_blocks * num_kv_heads, block_size * head_dim), one index_select with
`block * num_kv_heads + head` gathers (sequence, head, context, head_dim). Tokens first,
(num_blocks, block_size, num_kv_heads, head_dim), is what paged kernels on a device take.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
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
    block_size: int  # 0 until a backend is chosen, where that decides


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


class Metadata:
    """What all layers of a step share. Each backend has its own."""

    __slots__ = ()


class AttentionBackend(ABC):
    name: ClassVar[str]
    tokens_first: ClassVar[bool] = False  # the layout of its cache
    capturable: ClassVar[bool] = False  # a graph may capture the attention of decode rows

    remark: ClassVar[str] = ""  # for people: how it differs from others of its name

    @classmethod
    def default_block_size(cls) -> int:
        return 16

    @classmethod
    def refusal(
        cls,
        shape: CacheShape,
        dtype: torch.dtype,
        device: torch.device,
        options: Sequence[AttentionOptions],
    ) -> str | None:
        """Why it cannot run this, in words that follow its name; None if a probe may try."""
        return None

    def __init__(self, shape: CacheShape, dtype: torch.dtype, device: torch.device):
        self.shape = shape
        self.dtype = dtype  # of the cache
        self.device = device
        self.kv: Sequence[tuple[torch.Tensor, torch.Tensor]] = ()

    def bind(self, kv: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Takes the cache: keys and values of each layer."""
        self.kv = kv

    @abstractmethod
    def prepare(self, batch: AttentionBatch) -> Metadata:
        """Metadata of one step, valid until the next `prepare`."""

    @abstractmethod
    def forward(
        self,
        q: torch.Tensor,  # (T, heads, head_dim)
        k: torch.Tensor,  # (T, kv heads, head_dim), as is v
        v: torch.Tensor,
        layer: int,
        options: AttentionOptions,
        metadata: Metadata,
    ) -> torch.Tensor:
        """Writes the step's keys and values, then attends: causal, over the row's context.
        A tensor like q."""


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
    sizes = np.fromiter(map(len, batch.blocks), np.int64)
    firsts = np.fromiter((blocks[0] for blocks in batch.blocks), np.int64)
    table = np.repeat(firsts[:, None], sizes.max(), axis=1)
    held = np.arange(table.shape[1]) < sizes[:, None]
    table[held] = np.fromiter(chain.from_iterable(batch.blocks), np.int64, sizes.sum())
    return table
