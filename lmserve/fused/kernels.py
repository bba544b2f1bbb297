"""The fused ops by Triton kernels. (Importing this imports Triton.)"""

from __future__ import annotations

from typing import ClassVar

import torch

from lmserve.fused.base import Activation, LayerCache, Norm, Ops, QKNorm, RopeTables, RowTiling
from lmserve.fused.gate import launch_gate
from lmserve.fused.norms import launch_norm
from lmserve.fused.rope import launch_rope_write
from lmserve.fused.row import launch_row_product


class TritonOps(Ops):
    name: ClassVar[str] = "triton"
    row_tilings: ClassVar[tuple[RowTiling, ...]] = (RowTiling(16, 256, 4), RowTiling(8, 512, 4))

    def __init__(self, overlaps: bool = False):
        self.overlaps = overlaps  # kernels begin while the ones before them end

    def norm(self, x: torch.Tensor, norm: Norm) -> torch.Tensor:
        out = torch.empty_like(x)
        launch_norm(x, None, None, norm, out, self.overlaps)
        return out

    def add_norm(
        self, x: torch.Tensor, residual: torch.Tensor, norm: Norm, post: Norm | None = None
    ) -> torch.Tensor:
        out = torch.empty_like(x)
        launch_norm(x, residual, post, norm, out, self.overlaps)
        return out

    def add_finite(
        self, x: torch.Tensor, residual: torch.Tensor, post: Norm | None = None
    ) -> torch.Tensor:
        finite = x.new_empty(len(x), dtype=torch.bool)
        launch_norm(x, residual, post, None, finite, self.overlaps)
        return finite

    def rope_write(
        self,
        qkv: torch.Tensor,
        positions: torch.Tensor,
        rope: RopeTables,
        slots: torch.Tensor,
        cache: LayerCache,
        qk_norm: QKNorm | None = None,
    ) -> torch.Tensor:
        num_kv_heads, head_dim = cache.keys.shape[1:]
        num_heads = qkv.shape[1] // head_dim - 2 * num_kv_heads
        queries = qkv.new_empty(len(qkv), num_heads, head_dim)
        launch_rope_write(qkv, positions, rope, slots, cache, qk_norm, queries, self.overlaps)
        return queries

    def gate(self, hidden: torch.Tensor, activation: Activation) -> torch.Tensor:
        num_rows, width = hidden.shape
        out = hidden.new_empty(num_rows, width // 2)
        launch_gate(hidden, activation, out, self.overlaps)
        return out

    def row_product(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        tiling: RowTiling,
        activation: Activation | None = None,
    ) -> torch.Tensor:
        out = x.new_empty(1, len(weight) if activation is None else len(weight) // 2)
        launch_row_product(x, weight, bias, out, tiling, activation, self.overlaps)
        return out
