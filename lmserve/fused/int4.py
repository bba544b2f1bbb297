"""Triton kernel that dequantises a 4-bit weight as torch's kernel has it packed, one program a
tile. Its twin is `models.linears.int4.dequantise_plainly`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lmserve.device.launches import launch

TILE_OUTPUTS = 8


def dequantise(packed: torch.Tensor, layout: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
    """(out, in) in bfloat16, of a weight in tiles of 8 outputs; `layout` says of each code of a
    tile which nibble it is, `pairs` (groups, out, 2) has the scales and the values of code 8."""
    num_in = packed.shape[1] * (len(layout) // TILE_OUTPUTS)
    out = pairs.new_empty(pairs.shape[1], num_in)
    launch_dequantise(packed, layout, pairs, out)
    return out


@triton.jit
def dequantise_kernel(
    packed,
    layout,
    pairs,
    out,
    NUM_OUT: tl.constexpr,
    NUM_IN: tl.constexpr,
    GROUP: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
):
    down = tl.program_id(0)
    across = tl.program_id(1)
    output = tl.arange(0, OUTPUTS)[:, None]
    inside = tl.arange(0, INPUTS)[None, :]
    nibble = tl.load(layout + output * INPUTS + inside)
    tile = (down * tl.num_programs(1) + across).to(tl.int64)
    word = tl.load(packed + tile * (OUTPUTS * INPUTS // 8) + nibble // 8)
    code = (word >> (nibble % 8 * 4)) & 15
    row = (down * OUTPUTS + output).to(tl.int64)
    column = across * INPUTS + inside
    pair = pairs + (column // GROUP * NUM_OUT + row) * 2
    scale = tl.load(pair).to(tl.float32)
    middle = tl.load(pair + 1).to(tl.float32)
    value = (code - 8).to(tl.float32) * scale + middle
    tl.store(out + row * NUM_IN + column, value.to(out.dtype.element_ty))


@launch
def launch_dequantise(
    packed: torch.Tensor, layout: torch.Tensor, pairs: torch.Tensor, out: torch.Tensor
) -> None:
    num_out, num_in = out.shape
    inputs = len(layout) // TILE_OUTPUTS
    dequantise_kernel[(num_out // TILE_OUTPUTS, num_in // inputs)](
        packed,
        layout,
        pairs,
        out,
        NUM_OUT=num_out,
        NUM_IN=num_in,
        GROUP=num_in // len(pairs),
        OUTPUTS=TILE_OUTPUTS,
        INPUTS=inputs,
        num_warps=4,
    )
