"""The twins: each fused op in plain torch, on any device."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F

from lmserve.fused.base import (
    FP8,
    FP8_MAX,
    GELU_CUBE,
    GELU_SLOPE,
    Activation,
    LayerCache,
    Norm,
    Ops,
    QKNorm,
    RopeTables,
)


class PlainOps(Ops):
    name: ClassVar[str] = "twins"

    def norm(self, x: torch.Tensor, norm: Norm) -> torch.Tensor:
        return _norm(x, norm.weight, norm.eps, norm.rounds_first)

    def add_norm(
        self, x: torch.Tensor, residual: torch.Tensor, norm: Norm, post: Norm | None = None
    ) -> torch.Tensor:
        return self.norm(self._add(x, residual, post), norm)

    def add_finite(
        self, x: torch.Tensor, residual: torch.Tensor, post: Norm | None = None
    ) -> torch.Tensor:
        return self._add(x, residual, post).isfinite().all(-1)

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
        heads = qkv.view(len(qkv), -1, head_dim)
        num_heads = heads.shape[1] - 2 * num_kv_heads
        q, k, v = heads.split((num_heads, num_kv_heads, num_kv_heads), dim=1)
        if qk_norm is not None:
            q = _norm(q, qk_norm.q_weight, qk_norm.eps, qk_norm.rounds_first)
            k = _norm(k, qk_norm.k_weight, qk_norm.eps, qk_norm.rounds_first)
        cos, sin = (table.index_select(0, positions).unsqueeze(1) for table in (rope.cos, rope.sin))
        _write(cache.keys, slots, _turn(k, cos, sin), cache.k_scale)
        _write(cache.values, slots, v, cache.v_scale)
        return _turn(q, cos, sin)

    def gate(self, hidden: torch.Tensor, activation: Activation) -> torch.Tensor:
        gate, up = hidden.chunk(2, dim=-1)
        if activation == "silu":
            return F.silu(gate).mul_(up)
        # 1 + tanh(u) is twice the sigmoid of 2 u, which keeps the digits of small results
        wide = gate.float()
        slope = GELU_SLOPE * (wide + GELU_CUBE * wide**3)
        return (wide * slope.sigmoid_()).to(gate.dtype).mul_(up)

    def _add(self, x: torch.Tensor, residual: torch.Tensor, post: Norm | None) -> torch.Tensor:
        return residual.add_(x if post is None else self.norm(x, post))


def _norm(x: torch.Tensor, weight: torch.Tensor, eps: float, rounds_first: bool) -> torch.Tensor:
    wide = x.float()
    wide = wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt_()
    if rounds_first:
        return wide.to(x.dtype) * weight
    return (wide * weight).to(x.dtype)


def _turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Each pair of a head's halves by its angle; rounded once."""
    first, second = x.float().chunk(2, dim=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return torch.cat(turned, dim=-1).to(x.dtype)


def _write(cache: torch.Tensor, slots: torch.Tensor, x: torch.Tensor, scale: float) -> None:
    if cache.dtype == FP8:  # as bytes: torch's index functions do not all know it
        x = (x.float() / scale).clamp_(-FP8_MAX, FP8_MAX).to(FP8).view(torch.uint8)
        cache = cache.view(torch.uint8)
    cache.index_copy_(0, slots, x.to(cache.dtype))
