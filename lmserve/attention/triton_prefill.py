"""Prefill attention in Triton over paged keys and values, and the plain write of them.

Rows of any lengths, causal: the queries of a row are the last tokens of its context. A program
takes some queries of one row with all query heads of one KV head: its lines are (query, head).
Tiles that all its queries see wholly come first and are not masked.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lmserve.attention.triton_tiles import (
    NUM_STAGES,
    attend_tiles,
    dot_dtype,
    exponents,
    scales,
    tile_size,
)

FP8_MAX = 448.0


def paged_prefill(
    q: torch.Tensor,  # (T, heads, head_dim)
    keys: torch.Tensor,  # (blocks, block_size, kv heads, head_dim), as are the values
    values: torch.Tensor,
    table: torch.Tensor,  # (B, W) int32
    context_lens: torch.Tensor,  # (B) int32: with the row's own tokens
    query_starts: torch.Tensor,  # (B + 1) int32
    out: torch.Tensor,  # like q
    *,
    max_query: int,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    k_scale: float | torch.Tensor = 1.0,  # of a quantised cache; a tensor of one float32
    v_scale: float | torch.Tensor = 1.0,
) -> None:
    num_heads, head_dim = q.shape[1:]
    block_size, num_kv_heads = keys.shape[1:3]
    assert q.stride(2) == out.stride(2) == keys.stride(3) == 1 and keys.stride() == values.stride()
    group = num_heads // num_kv_heads
    padded_dim = max(16, triton.next_power_of_2(head_dim))
    lines = _lines(max_query, group, q.dtype)
    queries = lines // group
    _prefill_kernel[(num_kv_heads, triton.cdiv(max_query, queries), len(context_lens))](
        q,
        keys,
        values,
        table,
        context_lens,
        query_starts,
        out,
        *scales(k_scale, v_scale),
        float(scale),
        float(softcap or 0),
        window or 0,
        *q.stride()[:2],
        *keys.stride()[:3],
        table.stride(0),
        *out.stride()[:2],
        GROUP=group,
        QUERIES=queries,
        LINES=lines,
        HEAD_DIM=head_dim,
        PADDED_DIM=padded_dim,
        BLOCK_SIZE=block_size,
        TILE=tile_size(padded_dim, q.dtype),
        HAS_WINDOW=window is not None,
        HAS_SOFTCAP=softcap is not None,
        HAS_SCALES=isinstance(k_scale, torch.Tensor),
        DOT_DTYPE=dot_dtype(q.dtype),
        num_warps=8 if lines >= 128 else 4,
        num_stages=NUM_STAGES if padded_dim <= 128 else 2,
    )


def _lines(max_query: int, group: int, dtype: torch.dtype) -> int:
    """Queries times heads of a program: a power of two. Two sizes, as each is compiled."""
    few = dtype == torch.float32 or max_query * group <= 16  # float32: only to check with
    return max(16 if few else 128, triton.next_power_of_2(group))


def write_kv(
    k: torch.Tensor,  # (T, kv heads, head_dim), as is v
    v: torch.Tensor,
    slots: torch.Tensor,  # (T) int64: block * block_size + offset
    keys: torch.Tensor,  # (blocks, block_size, kv heads, head_dim), as are the values
    values: torch.Tensor,
    *,
    k_scale: float | torch.Tensor = 1.0,  # of a quantised cache; a tensor of one float32
    v_scale: float | torch.Tensor = 1.0,
) -> None:
    num_tokens, num_kv_heads, head_dim = k.shape
    assert k.stride(2) == v.stride(2) == keys.stride(3) == 1 and keys.stride() == values.stride()
    width = num_kv_heads * head_dim
    _write_kernel[(num_tokens,)](
        k,
        v,
        slots,
        keys,
        values,
        *scales(k_scale, v_scale),
        *k.stride()[:2],
        *v.stride()[:2],
        *keys.stride()[:3],
        WIDTH=width,
        PADDED_WIDTH=triton.next_power_of_2(width),
        HEAD_DIM=head_dim,
        BLOCK_SIZE=keys.shape[1],
        FP8=keys.dtype == torch.float8_e4m3fn,
        HAS_SCALES=isinstance(k_scale, torch.Tensor),
        MAX=FP8_MAX,
        num_warps=4,
    )


@triton.jit(do_not_specialize=["window", "stride_table"])
def _prefill_kernel(
    q,
    keys,
    values,
    table,
    context_lens,
    query_starts,
    out,
    k_scale,
    v_scale,
    scale,
    softcap,
    window,
    stride_q,
    stride_q_head,
    stride_block,
    stride_token,
    stride_head,
    stride_table,
    stride_out,
    stride_out_head,
    GROUP: tl.constexpr,
    QUERIES: tl.constexpr,
    LINES: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    DOT_DTYPE: tl.constexpr,
):
    kv_head, row = tl.program_id(0), tl.program_id(2).to(tl.int64)
    start = tl.load(query_starts + row)
    length = tl.load(query_starts + row + 1) - start
    # the last queries see most: they begin first
    first_query = (tl.num_programs(1) - 1 - tl.program_id(1)) * QUERIES
    if first_query >= length:
        return
    context = tl.load(context_lens + row)
    k_factor, v_factor = k_scale, v_scale
    if HAS_SCALES:
        k_factor, v_factor = tl.load(k_scale), tl.load(v_scale)
    inner, factor = exponents(scale * k_factor, softcap, HAS_SOFTCAP)

    lines, dims = tl.arange(0, LINES), tl.arange(0, PADDED_DIM)
    query = first_query + lines // GROUP
    head = kv_head * GROUP + lines % GROUP
    held = ((lines < QUERIES * GROUP) & (query < length))[:, None] & (dims < HEAD_DIM)[None, :]
    token = start.to(tl.int64) + query
    where = token[:, None] * stride_q + head[:, None] * stride_q_head + dims[None, :]
    queries = tl.load(q + where, mask=held, other=0.0).to(DOT_DTYPE)

    before = context - length + first_query  # positions before the first query
    end = tl.minimum(before + QUERIES, context)
    begin = before * 0
    whole = (before + 1) // TILE  # tiles that all queries see
    if HAS_WINDOW:
        begin = tl.maximum(before + 1 - window, 0)
        whole = begin // TILE  # any tile may have keys that some query no longer sees
    position = before + lines // GROUP
    best = tl.full([LINES], float("-inf"), tl.float32)
    total = tl.zeros([LINES], tl.float32)
    acc = tl.zeros([LINES, PADDED_DIM], tl.float32)
    keys += kv_head * stride_head
    values += kv_head * stride_head
    table += row * stride_table
    if not HAS_WINDOW:
        best, total, acc = attend_tiles(
            queries,
            best,
            total,
            acc,
            0,
            whole,
            position,
            begin,
            end,
            keys,
            values,
            table,
            stride_block,
            stride_token,
            inner,
            factor,
            window,
            HEAD_DIM,
            PADDED_DIM,
            BLOCK_SIZE,
            TILE,
            False,
            HAS_WINDOW,
            HAS_SOFTCAP,
            DOT_DTYPE,
        )
    best, total, acc = attend_tiles(
        queries,
        best,
        total,
        acc,
        whole,
        tl.cdiv(end, TILE),
        position,
        begin,
        end,
        keys,
        values,
        table,
        stride_block,
        stride_token,
        inner,
        factor,
        window,
        HEAD_DIM,
        PADDED_DIM,
        BLOCK_SIZE,
        TILE,
        True,
        HAS_WINDOW,
        HAS_SOFTCAP,
        DOT_DTYPE,
    )
    acc = acc * (v_factor / tl.where(total == 0.0, 1.0, total))[:, None]
    where = token[:, None] * stride_out + head[:, None] * stride_out_head + dims[None, :]
    tl.store(out + where, acc.to(out.dtype.element_ty), mask=held)


@triton.jit
def _write_kernel(
    k,
    v,
    slots,
    keys,
    values,
    k_scale,
    v_scale,
    stride_k,
    stride_k_head,
    stride_v,
    stride_v_head,
    stride_block,
    stride_token,
    stride_head,
    WIDTH: tl.constexpr,
    PADDED_WIDTH: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    FP8: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    MAX: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token)
    at = slot // BLOCK_SIZE * stride_block + slot % BLOCK_SIZE * stride_token
    index = tl.arange(0, PADDED_WIDTH)
    head, dim = index // HEAD_DIM, index % HEAD_DIM
    held = index < WIDTH
    new_k = tl.load(k + token * stride_k + head * stride_k_head + dim, mask=held)
    new_v = tl.load(v + token * stride_v + head * stride_v_head + dim, mask=held)
    if FP8:
        k_factor, v_factor = k_scale, v_scale
        if HAS_SCALES:
            k_factor, v_factor = tl.load(k_scale), tl.load(v_scale)
        new_k = _clamped(new_k.to(tl.float32) / k_factor, MAX)
        new_v = _clamped(new_v.to(tl.float32) / v_factor, MAX)
    where = at + head * stride_head + dim
    tl.store(keys + where, new_k.to(keys.dtype.element_ty), mask=held)
    tl.store(values + where, new_v.to(values.dtype.element_ty), mask=held)


@triton.jit
def _clamped(x, MAX: tl.constexpr):
    """Beyond its largest number the format has no infinity; what is no number stays so."""
    return tl.clamp(x, -MAX, MAX, propagate_nan=tl.PropagateNan.ALL)
