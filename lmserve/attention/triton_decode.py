"""Decode attention in Triton: one query a row over paged keys and values.

A program takes all query heads of one KV head, so that keys and values are read once and the
products run on tensor cores, and a share of the row's tiles (split-K): few rows fill the card
too. The grid depends on the number of rows alone; what a split's share is, the kernel computes
from the row's context, and a split without one ends at once. A second kernel puts the splits of
a row together, in their order.

A row's bits depend on its own context and the number of splits, never on other rows: give
`num_splits` and they do not depend on the size of the batch either.
"""

from __future__ import annotations

from dataclasses import dataclass

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

MAX_SPLITS = 64  # a power of two
PROGRAMS = 4  # a multiprocessor: one more than run at once, to even out unlike contexts


@dataclass(frozen=True, slots=True)
class DecodeScratch:
    """Where splits leave their results. Allocated once: graphs keep its addresses."""

    partial: torch.Tensor  # (rows * heads * splits, head_dim) float32, or as much as is needed
    lse: torch.Tensor  # likewise without head_dim: log2 of the sums of weights
    max_programs: int  # more than so many rows and KV heads are not split
    num_splits: int | None  # the same for all numbers of rows

    def splits(self, rows: int, num_kv_heads: int) -> int:
        if self.num_splits is not None:
            return self.num_splits
        return max(1, min(MAX_SPLITS, self.max_programs // (rows * num_kv_heads)))


def decode_scratch(
    max_rows: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    device: torch.device,
    num_splits: int | None = None,  # up to MAX_SPLITS
) -> DecodeScratch:
    """Room for rows of any number, or, where the number of splits is given, `max_rows`."""
    max_programs = PROGRAMS * _multiprocessors(device)
    entries = max_programs * (num_heads // num_kv_heads)
    if num_splits is not None:
        entries = max_rows * num_heads * num_splits
    return DecodeScratch(
        partial=torch.empty(entries, head_dim, dtype=torch.float32, device=device),
        lse=torch.empty(entries, dtype=torch.float32, device=device),
        max_programs=max_programs,
        num_splits=num_splits,
    )


def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 4
    properties = torch.get_device_module(device).get_device_properties(device)
    return int(properties.multi_processor_count)


def paged_decode(
    q: torch.Tensor,  # (B, heads, head_dim)
    keys: torch.Tensor,  # (blocks, block_size, kv heads, head_dim), as are the values
    values: torch.Tensor,
    table: torch.Tensor,  # (B, W) int32
    context_lens: torch.Tensor,  # (B) int32
    out: torch.Tensor,  # like q
    scratch: DecodeScratch,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    k_scale: float | torch.Tensor = 1.0,  # of a quantised cache; a tensor of one float32
    v_scale: float | torch.Tensor = 1.0,
) -> None:
    rows, num_heads, head_dim = q.shape
    block_size, num_kv_heads = keys.shape[1:3]
    assert q.stride(2) == out.stride(2) == keys.stride(3) == 1 and keys.stride() == values.stride()
    group = num_heads // num_kv_heads
    padded_dim = max(16, triton.next_power_of_2(head_dim))
    num_splits = scratch.splits(rows, num_kv_heads)
    shared = {
        "HEAD_DIM": head_dim,
        "PADDED_DIM": padded_dim,
        "TILE": tile_size(padded_dim, q.dtype),
        "HAS_WINDOW": window is not None,
    }
    _decode_kernel[(num_kv_heads, rows, num_splits)](
        q,
        keys,
        values,
        table,
        context_lens,
        out,
        scratch.partial,
        scratch.lse,
        *scales(k_scale, v_scale),
        float(scale),
        float(softcap or 0),
        window or 0,
        num_splits,
        *q.stride()[:2],
        *keys.stride()[:3],
        table.stride(0),
        *out.stride()[:2],
        GROUP=group,
        PADDED_GROUP=max(16, triton.next_power_of_2(group)),
        BLOCK_SIZE=block_size,
        HAS_SOFTCAP=softcap is not None,
        HAS_SCALES=isinstance(k_scale, torch.Tensor),
        SPLIT=num_splits > 1,
        DOT_DTYPE=dot_dtype(q.dtype),
        **shared,
        num_warps=4,
        num_stages=NUM_STAGES,
    )
    if num_splits > 1:
        _combine_kernel[(num_heads, rows)](
            scratch.partial,
            scratch.lse,
            context_lens,
            out,
            window or 0,
            num_splits,
            *out.stride()[:2],
            MAX_SPLITS=MAX_SPLITS,
            **shared,
            num_warps=4 if padded_dim <= 128 else 8,
        )


@triton.jit
def _share(context, window, split, num_splits, TILE: tl.constexpr, HAS_WINDOW: tl.constexpr):
    """The tiles of a split, first and last, and the first position seen."""
    begin = context * 0
    if HAS_WINDOW:
        begin = tl.maximum(context - window, 0)
    first = begin // TILE
    end = tl.cdiv(context, TILE)
    size = tl.cdiv(end - first, num_splits)
    first = first + split * size
    return first, tl.minimum(first + size, end), begin


@triton.jit(do_not_specialize=["window", "num_splits", "stride_table"])
def _decode_kernel(
    q,
    keys,
    values,
    table,
    context_lens,
    out,
    partial,
    lse,
    k_scale,
    v_scale,
    scale,
    softcap,
    window,
    num_splits,
    stride_q,
    stride_q_head,
    stride_block,
    stride_token,
    stride_head,
    stride_table,
    stride_out,
    stride_out_head,
    GROUP: tl.constexpr,
    PADDED_GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    SPLIT: tl.constexpr,
    DOT_DTYPE: tl.constexpr,
):
    kv_head, row, split = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    context = tl.load(context_lens + row)
    first, last, begin = _share(context, window, split, num_splits, TILE, HAS_WINDOW)
    if SPLIT:
        if first >= last:
            return
    k_factor, v_factor = k_scale, v_scale
    if HAS_SCALES:
        k_factor, v_factor = tl.load(k_scale), tl.load(v_scale)
    inner, factor = exponents(scale * k_factor, softcap, HAS_SOFTCAP)

    lines, dims = tl.arange(0, PADDED_GROUP), tl.arange(0, PADDED_DIM)
    head = kv_head * GROUP + lines
    held = (lines < GROUP)[:, None] & (dims < HEAD_DIM)[None, :]
    where = row * stride_q + head[:, None] * stride_q_head + dims[None, :]
    queries = tl.load(q + where, mask=held, other=0.0).to(DOT_DTYPE)
    best, total, acc = attend_tiles(
        queries,
        tl.full([PADDED_GROUP], float("-inf"), tl.float32),
        tl.zeros([PADDED_GROUP], tl.float32),
        tl.zeros([PADDED_GROUP, PADDED_DIM], tl.float32),
        first,
        last,
        tl.zeros([PADDED_GROUP], tl.int32) + context - 1,
        begin,
        context,
        keys + kv_head * stride_head,
        values + kv_head * stride_head,
        table + row * stride_table,
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
    total = tl.where(total == 0.0, 1.0, total)
    acc = acc * (v_factor / total)[:, None]
    if SPLIT:
        entry = (row * (tl.num_programs(0) * GROUP) + head) * num_splits + split
        tl.store(partial + entry[:, None] * HEAD_DIM + dims[None, :], acc, mask=held)
        tl.store(lse + entry, best * factor + tl.log2(total), mask=lines < GROUP)
    else:
        where = row * stride_out + head[:, None] * stride_out_head + dims[None, :]
        tl.store(out + where, acc.to(out.dtype.element_ty), mask=held)


@triton.jit(do_not_specialize=["window", "num_splits"])
def _combine_kernel(
    partial,
    lse,
    context_lens,
    out,
    window,
    num_splits,
    stride_out,
    stride_out_head,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    TILE: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
):
    head, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    splits, dims = tl.arange(0, MAX_SPLITS), tl.arange(0, PADDED_DIM)
    context = tl.load(context_lens + row)
    first, last, _ = _share(context, window, splits, num_splits, TILE, HAS_WINDOW)
    used = (splits < num_splits) & (first < last)
    entry = (row * tl.num_programs(0) + head) * num_splits + splits
    weights = tl.load(lse + entry, mask=used, other=float("-inf"))
    highest = tl.max(weights, 0)
    weights = tl.exp2(weights - tl.where(highest == float("-inf"), 0.0, highest))
    held = used[:, None] & (dims < HEAD_DIM)[None, :]
    parts = tl.load(partial + entry[:, None] * HEAD_DIM + dims[None, :], mask=held, other=0.0)
    total = tl.sum(weights, 0)
    result = tl.sum(parts * weights[:, None], 0) / tl.where(total == 0.0, 1.0, total)
    where = row * stride_out + head * stride_out_head + dims
    tl.store(out + where, result.to(out.dtype.element_ty), mask=dims < HEAD_DIM)
