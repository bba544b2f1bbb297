"""Triton kernel of a product with one row, which is as fast as its weight can be read: each program
reads some of the weight's lines, the first of their tiles before it waits for the row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lmserve.device.launches import launch
from lmserve.fused.base import GELU_CUBE, Activation, RowTiling
from lmserve.fused.gate import gated, slope_of
from lmserve.fused.overlap import let_next_begin, wait_for_last


@triton.jit
def row_product_kernel(
    x,
    weight,
    bias,
    out,
    num_out,
    num_in,
    HAS_BIAS: tl.constexpr,
    GATES: tl.constexpr,  # the first half of the lines gates the second
    SLOPE: tl.constexpr,
    CUBE: tl.constexpr,
    LINES: tl.constexpr,
    COLUMNS: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    let_next_begin(OVERLAPS)
    dtype: tl.constexpr = out.dtype.element_ty
    line = tl.program_id(0) * LINES + tl.arange(0, LINES)
    there = line < num_out
    if GATES:  # in turn one of the first half and its own of the second
        line = line // 2 + (line % 2) * (num_out // 2)
    column = tl.arange(0, COLUMNS)
    lines = weight + line.to(tl.int64)[:, None] * num_in
    inside = there[:, None] & (column < num_in)[None, :]
    tile = tl.load(lines + column[None, :], mask=inside, other=0.0, eviction_policy="evict_first")
    if HAS_BIAS:
        added = tl.load(bias + line, mask=there, other=0.0).to(tl.float32)
    wait_for_last(OVERLAPS)
    total = tl.zeros((LINES, COLUMNS), dtype=tl.float32)
    for start in range(0, num_in, COLUMNS):
        at = start + column
        # for each line anew, from the nearest cache: what is shared would have to wait for others
        places = tl.broadcast_to(at[None, :], (LINES, COLUMNS))
        part = tl.load(x + places, mask=places < num_in, other=0.0).to(tl.float32)
        after = at + COLUMNS
        inside = there[:, None] & (after < num_in)[None, :]
        coming = tl.load(
            lines + after[None, :], mask=inside, other=0.0, eviction_policy="evict_first"
        )
        total += tile.to(tl.float32) * part
        tile = coming
    result = tl.sum(total, axis=1)
    if HAS_BIAS:
        result += added
    if GATES:
        gate, up = tl.split(tl.reshape(result.to(dtype).to(tl.float32), (LINES // 2, 2)))
        place = tl.program_id(0) * (LINES // 2) + tl.arange(0, LINES // 2)
        tl.store(out + place, gated(gate, up, SLOPE, CUBE, dtype), mask=place < num_out // 2)
    else:
        tl.store(out + line, result.to(dtype), mask=there)


@launch
def launch_row_product(
    x: torch.Tensor,  # (1, in)
    weight: torch.Tensor,  # (out, in)
    bias: torch.Tensor | None,
    out: torch.Tensor,  # (1, out), or half of it where there is an activation
    tiling: RowTiling,
    activation: Activation | None,
    overlaps: bool,
) -> None:
    num_out, num_in = weight.shape
    row_product_kernel[(triton.cdiv(num_out, tiling.num_lines),)](
        x,
        weight,
        weight if bias is None else bias,
        out,
        num_out,
        num_in,
        HAS_BIAS=bias is not None,
        GATES=activation is not None,
        SLOPE=None if activation is None else slope_of(activation),
        CUBE=GELU_CUBE,
        LINES=tiling.num_lines,
        COLUMNS=tiling.num_columns,
        OVERLAPS=overlaps,
        launch_pdl=overlaps,
        num_warps=tiling.num_warps,
    )
