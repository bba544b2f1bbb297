"""Inputs of the fused ops."""

from __future__ import annotations

import torch

from lmserve.device.select import device_for
from lmserve.fused.base import LayerCache, Norm, QKNorm, RopeTables
from lmserve.fused.kernels import TritonOps
from lmserve.fused.select import OVERLAP_CAPABILITY

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FP8 = torch.float8_e4m3fn
TRITON = TritonOps(overlaps=device_for(DEVICE).capability() >= OVERLAP_CAPABILITY)


def randn(*size: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*size, generator=generator).to(DEVICE, dtype)


def norm_of(width: int, dtype: torch.dtype, *, rounds_first: bool = True, seed: int = 1) -> Norm:
    """Gemma's weights are float32, whatever the model is."""
    weight = 1 + 0.3 * randn(width, seed=seed)
    return Norm(weight.to(dtype if rounds_first else torch.float32), 1e-6, rounds_first)


def qk_norm_of(head_dim: int, dtype: torch.dtype, *, rounds_first: bool = True) -> QKNorm:
    q, k = (norm_of(head_dim, dtype, rounds_first=rounds_first, seed=seed) for seed in (2, 3))
    return QKNorm(q.weight, k.weight, 1e-6, rounds_first)


def tables_of(head_dim: int, dtype: torch.dtype, num_positions: int = 50) -> RopeTables:
    exponents = torch.arange(0, head_dim, 2) / head_dim
    angles = torch.arange(num_positions)[:, None] / 100**exponents
    return RopeTables(angles.cos().to(DEVICE, dtype), angles.sin().to(DEVICE, dtype))


def cache_of(
    num_kv_heads: int, head_dim: int, dtype: torch.dtype, num_slots: int = 40
) -> LayerCache:
    keys, values = (randn(num_slots, num_kv_heads, head_dim, seed=s).to(dtype) for s in (4, 5))
    scales = (0.5, 0.75) if dtype == FP8 else (1.0, 1.0)
    return LayerCache(keys, values, *scales)


def places(num_tokens: int, limit: int, seed: int = 6) -> torch.Tensor:
    """Positions or slots, no two the same."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(limit, generator=generator)[:num_tokens].to(DEVICE)
