"""Every launch of models that people run, on tensors of their real sizes and no memory."""

from __future__ import annotations

import torch

from lmserve.fused.base import Activation, LayerCache, Norm, QKNorm, RopeTables
from lmserve.fused.kernels import TritonOps

OPS = [TritonOps(), TritonOps(overlaps=True)]
FP8 = torch.float8_e4m3fn


def empty(*size: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(size, dtype=dtype, device="meta")


def everything() -> None:
    qwen3_06b()
    qwen3_8b()
    llama3_8b()
    smollm2_135m()
    gemma3_1b()
    gemma2_2b()
    row_products()


def qwen3_06b() -> None:
    launches(1024, 16, 8, 128, 3072, qk_norm=True)


def qwen3_8b() -> None:
    launches(4096, 32, 8, 128, 12288, qk_norm=True)
    launches(4096, 32, 8, 128, 12288, qk_norm=True, cache_dtype=FP8)


def llama3_8b() -> None:
    launches(4096, 32, 8, 128, 14336)
    launches(4096, 32, 8, 128, 14336, cache_dtype=FP8)
    launches(4096, 32, 8, 128, 14336, dtype=torch.float16, cache_dtype=torch.float16)


def smollm2_135m() -> None:
    launches(576, 9, 3, 64, 1536)
    launches(576, 9, 3, 64, 1536, dtype=torch.float32, cache_dtype=torch.float32)


def gemma3_1b() -> None:
    launches(1152, 4, 1, 256, 6912, qk_norm=True, gemma=True)


def gemma2_2b() -> None:
    launches(2304, 8, 4, 256, 9216, gemma=True)


def launches(
    hidden_size: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    width: int,
    *,
    qk_norm: bool = False,
    gemma: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    cache_dtype: torch.dtype = torch.bfloat16,
) -> None:
    def norm(size: int) -> Norm:
        weight = empty(size, dtype=torch.float32 if gemma else dtype)
        return Norm(weight, 1e-6, rounds_first=not gemma)

    post = norm(hidden_size) if gemma else None
    activation: Activation = "gelu_pytorch_tanh" if gemma else "silu"
    head = norm(head_dim)
    tables = RopeTables(*(empty(4096, head_dim // 2, dtype=dtype) for _ in range(2)))
    cache = LayerCache(*(empty(1024, num_kv_heads, head_dim, dtype=cache_dtype) for _ in range(2)))
    for num_tokens in (1, 17, 8192):
        x, residual = (empty(num_tokens, hidden_size, dtype=dtype) for _ in range(2))
        positions, slots = (empty(num_tokens, dtype=torch.int64) for _ in range(2))
        qkv = empty(num_tokens, (num_heads + 2 * num_kv_heads) * head_dim, dtype=dtype)
        heads = QKNorm(head.weight, head.weight, 1e-6, not gemma) if qk_norm else None
        for ops in OPS:
            ops.norm(x, norm(hidden_size))
            ops.add_norm(x, residual, norm(hidden_size), post)
            ops.add_finite(x, residual, post)
            ops.rope_write(qkv, positions, tables, slots, cache, heads)
            ops.gate(empty(num_tokens, 2 * width, dtype=dtype), activation)


def row_products() -> None:
    """Of Qwen3-8B and 0.6B, and one with a bias."""
    shapes = [(6144, 4096), (4096, 4096), (24576, 4096), (4096, 12288), (151936, 4096)]
    shapes += [(4096, 1024), (1024, 2048), (6144, 1024), (1024, 3072), (152, 576)]
    for num_out, num_in in shapes:
        x, weight = empty(1, num_in), empty(num_out, num_in)
        for ops in OPS:
            for tiling in ops.row_tilings:
                ops.row_product(x, weight, None, tiling)
                ops.row_product(x, weight, empty(num_out), tiling)
                ops.row_product(x, weight, None, tiling, "silu")
                ops.row_product(x, weight, None, tiling, "gelu_pytorch_tanh")
