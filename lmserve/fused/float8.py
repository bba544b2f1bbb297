"""Triton kernel that rounds activations to 8-bit floats, one program a row, which it holds whole.
Its twin is `weights.quant.float8.round_rows`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lmserve.device.launches import launch
from lmserve.weights.quant.float8 import FLOAT8, LARGEST, SMALLEST_PEAK

ELEMENTS_A_WARP = 512  # 16 a thread
MAX_WARPS = 16


def round_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest values (T, width), and the scale of each row, float32 (T, 1)."""
    rounded = torch.empty_like(x, dtype=FLOAT8)
    scales = x.new_empty(len(x), 1, dtype=torch.float32)
    launch_round_rows(x, rounded, scales)
    return rounded, scales


@triton.jit
def round_rows_kernel(
    x,
    rounded,
    scales,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    LIMIT: tl.constexpr,
    SMALLEST: tl.constexpr,
):
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    row = tl.program_id(0).to(tl.int64)
    value = tl.load(x + row * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(value), axis=0), SMALLEST) / LIMIT
    nearest = tl.clamp(value / scale, -LIMIT, LIMIT, propagate_nan=tl.PropagateNan.ALL)
    tl.store(rounded + row * WIDTH + columns, nearest.to(rounded.dtype.element_ty), mask=inside)
    tl.store(scales + row, scale)


@launch
def launch_round_rows(x: torch.Tensor, rounded: torch.Tensor, scales: torch.Tensor) -> None:
    num_rows, width = x.shape
    block = triton.next_power_of_2(width)
    round_rows_kernel[(num_rows,)](
        x,
        rounded,
        scales,
        WIDTH=width,
        BLOCK=block,
        LIMIT=LARGEST,
        SMALLEST=SMALLEST_PEAK,
        num_warps=max(1, min(MAX_WARPS, block // ELEMENTS_A_WARP)),
    )
