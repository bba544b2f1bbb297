"""Triton kernel of products of 8-bit floats whose weights have a scale for every 128 inputs of
an output, as FP8 checkpoints in blocks do. Activations have one scale a row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lmserve.device.launches import launch

BLOCK_INPUTS = 128  # that share a scale
COLUMNS = 64  # outputs of a tile
NUM_STAGES = 3


def product(
    x: torch.Tensor,
    x_scales: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """(T, out) of x (T, in) and its scales (T, 1), weight (out, in) and its scales
    (out, blocks of 128 inputs)."""
    out = x.new_empty(len(x), len(weight), dtype=dtype)
    launch_product(x, x_scales, weight, scales, out)
    return out


@triton.jit
def product_kernel(
    x,
    x_scales,
    weight,
    scales,
    out,
    num_rows,
    NUM_OUT: tl.constexpr,
    NUM_IN: tl.constexpr,
    NUM_BLOCKS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = tl.arange(0, WIDTH)
    row_mask = row < num_rows
    column_mask = column < NUM_OUT
    x_at = x + row.to(tl.int64)[:, None] * NUM_IN + inside[None, :]
    weight_at = weight + column.to(tl.int64)[None, :] * NUM_IN + inside[:, None]
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for block in range(NUM_BLOCKS):
        left = inside < NUM_IN - block * WIDTH
        a = tl.load(x_at + block * WIDTH, mask=row_mask[:, None] & left[None, :], other=0.0)
        b = tl.load(weight_at + block * WIDTH, mask=left[:, None] & column_mask[None, :], other=0.0)
        scale = tl.load(scales + column * NUM_BLOCKS + block, mask=column_mask, other=0.0)
        total += tl.dot(a, b) * scale[None, :]
    total *= tl.load(x_scales + row, mask=row_mask, other=0.0)[:, None]
    at = out + row.to(tl.int64)[:, None] * NUM_OUT + column[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=row_mask[:, None] & column_mask[None, :])


@launch
def launch_product(
    x: torch.Tensor,
    x_scales: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    out: torch.Tensor,
) -> None:
    num_rows, num_out = out.shape
    num_in, num_blocks = weight.shape[1], scales.shape[1]
    rows = min(128, max(16, triton.next_power_of_2(num_rows)))
    product_kernel[(triton.cdiv(num_out, COLUMNS), triton.cdiv(num_rows, rows))](
        x,
        x_scales,
        weight,
        scales,
        out,
        num_rows,
        NUM_OUT=num_out,
        NUM_IN=num_in,
        NUM_BLOCKS=num_blocks,
        ROWS=rows,
        COLUMNS=COLUMNS,
        WIDTH=BLOCK_INPUTS,
        num_warps=4 if rows < 64 else 8,
        num_stages=NUM_STAGES,
    )
