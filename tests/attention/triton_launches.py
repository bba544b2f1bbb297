"""Launches of the attention kernels with the shapes of real models, on tensors without memory:
what `compile_for_h100` compiles."""

from __future__ import annotations

from itertools import product

import torch

from lmserve.attention.triton_decode import DecodeScratch, paged_decode
from lmserve.attention.triton_prefill import paged_prefill, write_kv

META = torch.device("meta")
BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn
# query heads, KV heads, head_dim: SmolLM2 135M, Qwen3 8B, Phi-2's 80, Phi-3's 96, Gemma 3 4B
SHAPES = [(9, 3, 64), (32, 8, 128), (32, 32, 80), (32, 32, 96), (8, 4, 256)]


def writes() -> None:
    for shape, (dtype, kv_dtype) in product(SHAPES, [(BF16, BF16), (BF16, FP8)]):
        _write(shape, 16, dtype, kv_dtype)
    _write((32, 8, 128), 16, BF16, FP8, scale=torch.empty(1, device=META))


def decodes() -> None:
    for shape, kv_dtype in product(SHAPES, [BF16, FP8]):
        _decode(shape, 64, BF16, kv_dtype, 512)
    main = (32, 8, 128)
    _decode(main, 64, BF16, BF16, 1)
    _decode(main, 16, BF16, BF16, 1)
    _decode((8, 4, 256), 64, BF16, FP8, 1)
    _decode(main, 256, BF16, BF16, 512)
    _decode(main, 16, torch.float16, torch.float16, 512)
    _decode(main, 16, torch.float32, torch.float32, 32)
    _decode(main, 48, BF16, BF16, 1, window=4096)
    _decode((8, 4, 256), 16, BF16, BF16, 64, window=1024)
    _decode((8, 4, 256), 16, BF16, BF16, 64, softcap=50.0)
    _decode(main, 16, BF16, FP8, 64, scale=torch.empty(1, device=META))


def prefills() -> None:
    for shape, kv_dtype in product(SHAPES, [BF16, FP8]):
        _prefill(shape, 64, BF16, kv_dtype, 2048)
    main = (32, 8, 128)
    _prefill(main, 16, BF16, BF16, 2048)
    _prefill(main, 64, BF16, BF16, 4)
    _prefill(main, 16, torch.float16, torch.float16, 2048)
    _prefill(main, 16, torch.float32, torch.float32, 100)
    _prefill(main, 16, BF16, BF16, 2048, window=4096)
    _prefill((8, 4, 256), 16, BF16, BF16, 2048, window=1024)
    _prefill((8, 4, 256), 16, BF16, BF16, 2048, softcap=50.0, window=1024)
    _prefill((8, 4, 256), 16, torch.float32, torch.float32, 100)
    _prefill(main, 16, BF16, FP8, 2048, scale=torch.empty(1, device=META))


def _cache(shape, block_size, kv_dtype):
    """Beyond what 32 bits count."""
    _, num_kv_heads, head_dim = shape
    size = (2**32 // block_size, block_size, num_kv_heads, head_dim)
    return [torch.empty(size, dtype=kv_dtype, device=META) for _ in range(2)]


def _ints(*size):
    return torch.empty(size, dtype=torch.int32, device=META)


def _decode(shape, block_size, dtype, kv_dtype, rows, window=None, softcap=None, scale=1.0):
    num_heads, num_kv_heads, head_dim = shape
    q = torch.empty(rows, num_heads, head_dim, dtype=dtype, device=META)
    floats = [torch.empty(size, device=META) for size in ((1, head_dim), (1,))]
    paged_decode(
        q,
        *_cache(shape, block_size, kv_dtype),
        _ints(rows, 2048),
        _ints(rows),
        torch.empty_like(q),
        DecodeScratch(*floats, max_programs=528, num_splits=None),
        scale=0.125,
        window=window,
        softcap=softcap,
        k_scale=scale,
        v_scale=scale,
    )


def _prefill(shape, block_size, dtype, kv_dtype, max_query, window=None, softcap=None, scale=1.0):
    num_heads, num_kv_heads, head_dim = shape
    width = num_heads + 2 * num_kv_heads
    q = torch.empty(4096, width, head_dim, dtype=dtype, device=META)[:, :num_heads]
    paged_prefill(
        q,
        *_cache(shape, block_size, kv_dtype),
        _ints(4, 2048),
        _ints(4),
        _ints(5),
        torch.empty(4096, num_heads, head_dim, dtype=dtype, device=META),
        max_query=max_query,
        scale=0.125,
        window=window,
        softcap=softcap,
        k_scale=scale,
        v_scale=scale,
    )


def _write(shape, block_size, dtype, kv_dtype, scale=1.0):
    num_heads, num_kv_heads, head_dim = shape
    width = num_heads + 2 * num_kv_heads
    qkv = torch.empty(4096, width, head_dim, dtype=dtype, device=META)
    k, v = qkv[:, num_heads:].split(num_kv_heads, dim=1)
    slots = torch.empty(4096, dtype=torch.int64, device=META)
    write_kv(k, v, slots, *_cache(shape, block_size, kv_dtype), k_scale=scale, v_scale=scale)
