"""Triton kernel of the gate: the activation of one half of a row times the other."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lmserve.device.launches import launch
from lmserve.fused.base import GELU_CUBE, GELU_SLOPE, Activation
from lmserve.fused.overlap import let_next_begin, wait_for_last

BLOCK = 1024
NUM_WARPS = 4  # 8 elements a thread


@triton.jit
def gated(
    gate,  # float32
    up,
    SLOPE: tl.constexpr,  # of gelu; silu has none
    CUBE: tl.constexpr,
    DTYPE: tl.constexpr,
):
    slope = gate
    if SLOPE is not None:
        slope = SLOPE * (gate + CUBE * gate * gate * gate)
    active = gate / (1.0 + tl.exp(-slope))
    return (active.to(DTYPE).to(tl.float32) * up).to(DTYPE)


@triton.jit
def gate_kernel(
    hidden,
    out,
    WIDTH: tl.constexpr,
    SLOPE: tl.constexpr,
    CUBE: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    dtype: tl.constexpr = out.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    let_next_begin(OVERLAPS)
    wait_for_last(OVERLAPS)
    source = hidden + row * (2 * WIDTH) + column
    gate = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(source + WIDTH, mask=inside, other=0.0).to(tl.float32)
    result = gated(gate, up, SLOPE, CUBE, dtype)
    tl.store(out + row * WIDTH + column, result, mask=inside)


def slope_of(activation: Activation) -> float | None:
    return None if activation == "silu" else GELU_SLOPE


@launch
def launch_gate(
    hidden: torch.Tensor, activation: Activation, out: torch.Tensor, overlaps: bool
) -> None:
    num_rows, width = out.shape
    gate_kernel[(num_rows, triton.cdiv(width, BLOCK))](
        hidden,
        out,
        WIDTH=width,
        SLOPE=slope_of(activation),
        CUBE=GELU_CUBE,
        BLOCK=BLOCK,
        OVERLAPS=overlaps,
        launch_pdl=overlaps,
        num_warps=NUM_WARPS,
    )
