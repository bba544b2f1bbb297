"""The interface of the fused ops: what a decoder does between its products, one launch each.

Two forms: Triton kernels, and their twins in plain torch, which say what is right. Both compute
in float32 and round where transformers rounds, so that the two differ in the last bit at most.
A row's bits depend on nothing but the row. No op waits for the device or makes a tensor of host
data: a graph may capture each of them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

import torch

Activation: TypeAlias = Literal["silu", "gelu_pytorch_tanh"]

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
# gelu_pytorch_tanh is x times the sigmoid of SLOPE * (x + CUBE * x**3)
GELU_SLOPE = 2 * math.sqrt(2 / math.pi)
GELU_CUBE = 0.044715


@dataclass(frozen=True, slots=True)
class Norm:
    """An RMS norm over the last dimension."""

    weight: torch.Tensor  # what it multiplies by: 1 is added already where the model's lacks it
    eps: float
    rounds_first: bool  # to the model's dtype, before the weight; Gemma rounds once, after it


@dataclass(frozen=True, slots=True)
class QKNorm:
    """Norms of each query head and of each key head."""

    q_weight: torch.Tensor  # (head_dim)
    k_weight: torch.Tensor
    eps: float
    rounds_first: bool


@dataclass(frozen=True, slots=True)
class RopeTables:
    """Cosine and sine, (positions, head_dim / 2)."""

    cos: torch.Tensor
    sin: torch.Tensor


@dataclass(frozen=True, slots=True)
class LayerCache:
    """One layer's KV, tokens first: (slots, kv heads, head_dim). Float8 holds what is divided by
    the scale; what is too large for it becomes its largest."""

    keys: torch.Tensor
    values: torch.Tensor
    k_scale: float = 1.0
    v_scale: float = 1.0


@dataclass(frozen=True, slots=True)
class RowTiling:
    """Of a product with one row: what a program reads at a time, and with how many warps."""

    num_lines: int
    num_columns: int
    num_warps: int


class Ops(ABC):
    name: ClassVar[str]
    row_tilings: ClassVar[tuple[RowTiling, ...]] = ()  # which of them is the fastest is measured

    @abstractmethod
    def norm(self, x: torch.Tensor, norm: Norm) -> torch.Tensor:
        """Of x (T, hidden)."""

    @abstractmethod
    def add_norm(
        self, x: torch.Tensor, residual: torch.Tensor, norm: Norm, post: Norm | None = None
    ) -> torch.Tensor:
        """Adds x, or the norm `post` of it, to the residual in place: the norm of the sum."""

    @abstractmethod
    def add_finite(
        self, x: torch.Tensor, residual: torch.Tensor, post: Norm | None = None
    ) -> torch.Tensor:
        """Adds likewise: (T) of each row, whether all of the sum is finite."""

    @abstractmethod
    def rope_write(
        self,
        qkv: torch.Tensor,  # (T, (heads + 2 * kv heads) * head_dim)
        positions: torch.Tensor,  # (T) int64
        rope: RopeTables,
        slots: torch.Tensor,  # (T) int64: where in the cache
        cache: LayerCache,
        qk_norm: QKNorm | None = None,
    ) -> torch.Tensor:
        """Norms queries and keys, turns them by their positions, and writes keys and values into
        the cache. The queries, (T, heads, head_dim)."""

    @abstractmethod
    def gate(self, hidden: torch.Tensor, activation: Activation) -> torch.Tensor:
        """The activation of the first half of each row times the second half, (T, width)."""

    def row_product(
        self,
        x: torch.Tensor,  # (1, in)
        weight: torch.Tensor,  # (out, in)
        bias: torch.Tensor | None,
        tiling: RowTiling,
        activation: Activation | None = None,
    ) -> torch.Tensor:
        """(1, out), or the gate of it. Only of ops that have tilings for it."""
        raise NotImplementedError
