"""Triton kernel of rotary positions: norms queries and keys, turns them, writes the cache."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lmserve.device.launches import launch
from lmserve.fused.base import FP8, FP8_MAX, LayerCache, QKNorm, RopeTables
from lmserve.fused.overlap import let_next_begin, wait_for_last

PAIRS = 512  # elements of each half in a program: so many heads
NUM_WARPS = 2  # 8 elements of each half a thread


@triton.jit
def head_weight(q_weight, k_weight, is_query, dim, inside):
    """(heads, half): each head's weight at these dimensions."""
    q = tl.load(q_weight + dim, mask=inside, other=0.0).to(tl.float32)
    k = tl.load(k_weight + dim, mask=inside, other=0.0).to(tl.float32)
    return tl.where(is_query[:, None], q[None, :], k[None, :])


@triton.jit
def to_cache(x, scale, FP8_LIMIT: tl.constexpr, DTYPE: tl.constexpr):
    if FP8_LIMIT is not None:
        x = tl.clamp(
            x.to(tl.float32) / scale, -FP8_LIMIT, FP8_LIMIT, propagate_nan=tl.PropagateNan.ALL
        )
    return x.to(DTYPE)


@triton.jit(do_not_specialize_on_alignment=["positions", "slots"])  # parts of larger tensors
def rope_write_kernel(
    qkv,
    positions,
    cos,
    sin,
    q_weight,
    k_weight,
    slots,
    queries,
    keys,
    values,
    key_stride,
    value_stride,
    eps,
    k_scale,
    v_scale,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    HEAD_BLOCK: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    HAS_NORM: tl.constexpr,
    ROUNDS_FIRST: tl.constexpr,
    FP8_LIMIT: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    dtype: tl.constexpr = qkv.dtype.element_ty
    cache_dtype: tl.constexpr = keys.dtype.element_ty
    ALL_HEADS: tl.constexpr = HEADS + 2 * KV_HEADS
    DIM: tl.constexpr = 2 * HALF
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEAD_BLOCK + tl.arange(0, HEAD_BLOCK)
    dim = tl.arange(0, HALF_BLOCK)
    inside = dim < HALF
    mask = (head < ALL_HEADS)[:, None] & inside[None, :]
    is_query = head < HEADS
    is_value = head >= HEADS + KV_HEADS

    # all is asked for before the first is used
    let_next_begin(OVERLAPS)
    if HAS_NORM:
        first_weight = head_weight(q_weight, k_weight, is_query, dim, inside)
        second_weight = head_weight(q_weight, k_weight, is_query, dim + HALF, inside)
    wait_for_last(OVERLAPS)
    position = tl.load(positions + token)
    slot = tl.load(slots + token)
    at = head[:, None] * DIM + dim[None, :]
    source = qkv + token * (ALL_HEADS * DIM) + at
    first = tl.load(source, mask=mask, other=0.0)
    second = tl.load(source + HALF, mask=mask, other=0.0)
    c = tl.load(cos + position * HALF + dim, mask=inside, other=0.0).to(tl.float32)[None, :]
    s = tl.load(sin + position * HALF + dim, mask=inside, other=0.0).to(tl.float32)[None, :]
    a = first.to(tl.float32)
    b = second.to(tl.float32)
    if HAS_NORM:
        total = tl.sum(a * a + b * b, axis=1)
        factor = tl.rsqrt(total / DIM + eps)[:, None]
        a *= factor
        b *= factor
        if ROUNDS_FIRST:
            a = a.to(dtype).to(tl.float32)
            b = b.to(dtype).to(tl.float32)
        a = (a * first_weight).to(dtype).to(tl.float32)
        b = (b * second_weight).to(dtype).to(tl.float32)

    turned_first = (a * c - b * s).to(dtype)
    turned_second = (b * c + a * s).to(dtype)

    out = queries + token * (HEADS * DIM) + at
    tl.store(out, turned_first, mask=mask & is_query[:, None])
    tl.store(out + HALF, turned_second, mask=mask & is_query[:, None])

    key = keys + slot * key_stride + at - HEADS * DIM
    is_key = (head >= HEADS) & (head < HEADS + KV_HEADS)
    key_mask = mask & is_key[:, None]
    tl.store(key, to_cache(turned_first, k_scale, FP8_LIMIT, cache_dtype), mask=key_mask)
    tl.store(key + HALF, to_cache(turned_second, k_scale, FP8_LIMIT, cache_dtype), mask=key_mask)

    value = values + slot * value_stride + at - (HEADS + KV_HEADS) * DIM
    value_mask = mask & is_value[:, None]
    tl.store(value, to_cache(first, v_scale, FP8_LIMIT, cache_dtype), mask=value_mask)
    tl.store(value + HALF, to_cache(second, v_scale, FP8_LIMIT, cache_dtype), mask=value_mask)


@launch
def launch_rope_write(
    qkv: torch.Tensor,
    positions: torch.Tensor,
    rope: RopeTables,
    slots: torch.Tensor,
    cache: LayerCache,
    qk_norm: QKNorm | None,
    queries: torch.Tensor,
    overlaps: bool,
) -> None:
    num_tokens, num_heads, head_dim = queries.shape
    num_kv_heads = cache.keys.shape[1]
    half_block = triton.next_power_of_2(head_dim // 2)
    head_block = max(1, PAIRS // half_block)
    rope_write_kernel[(num_tokens, triton.cdiv(num_heads + 2 * num_kv_heads, head_block))](
        qkv,
        positions,
        rope.cos,
        rope.sin,
        qkv if qk_norm is None else qk_norm.q_weight,
        qkv if qk_norm is None else qk_norm.k_weight,
        slots,
        queries,
        cache.keys,
        cache.values,
        cache.keys.stride(0),
        cache.values.stride(0),
        0.0 if qk_norm is None else qk_norm.eps,
        cache.k_scale,
        cache.v_scale,
        HEADS=num_heads,
        KV_HEADS=num_kv_heads,
        HALF=head_dim // 2,
        HEAD_BLOCK=head_block,
        HALF_BLOCK=half_block,
        HAS_NORM=qk_norm is not None,
        ROUNDS_FIRST=qk_norm is not None and qk_norm.rounds_first,
        FP8_LIMIT=FP8_MAX if cache.keys.dtype == FP8 else None,
        OVERLAPS=overlaps,
        launch_pdl=overlaps,
        num_warps=NUM_WARPS,
    )
