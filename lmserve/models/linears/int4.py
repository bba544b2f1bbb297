"""Products with 4-bit weights on the device, by torch's own kernel; for many rows the weight is
dequantised and multiplied as a dense one."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TypeAlias

import torch
import torch.nn.functional as F

from lmserve.weights.quant.grouped import Groups

# Beyond this many rows a dequantised weight is faster: the kernel reads the weight once for every
# 16 rows. Reckoned for an H100, where at 4096 x 4096 it takes some 10 us each time and
# dequantising about 25 us, with 10 us of product.
INT4_MAX_ROWS = 64
GROUP_SIZES = (256, 128, 64, 32)  # that the kernel knows
TILE_OUTPUTS = 8
TILE_INPUTS = (128, 64, 32)  # of a tile of the packed weight: 16 for each of the kernel's steps

Pack: TypeAlias = Callable[[torch.Tensor, int], torch.Tensor]
# packed weight, layout and scale pairs to a dense weight in bfloat16
Dequantise: TypeAlias = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class DeviceInt4Linear:
    """The kernel works in bfloat16; other activations are converted there and back."""

    def __init__(self, groups: Groups, bias: torch.Tensor | None, dequantise: Dequantise):
        num_out, num_in = groups.codes.shape
        self.group_size = next(size for size in GROUP_SIZES if groups.group_size % size == 0)
        self.pairs = scale_pairs(groups, self.group_size)
        self.tile = tile_inputs(num_in)
        self.packed = torch.ops.aten._convert_weight_to_int4pack(
            pairs_of_codes(groups.codes), self.tile // 16
        )
        self.layout = layout_of(groups.codes.device, self.tile)
        self.order = groups.order
        self.bias = bias
        self.dequantise = dequantise

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.to(torch.bfloat16)
        if self.order is not None:
            rows = rows.index_select(1, self.order)
        if len(rows) <= INT4_MAX_ROWS:
            out = torch.ops.aten._weight_int4pack_mm(
                rows.contiguous(), self.packed, self.group_size, self.pairs
            )
        else:
            out = F.linear(rows, self.dequantise(self.packed, self.layout, self.pairs))
        out = out.to(x.dtype)
        return out if self.bias is None else out.add_(self.bias)


def fits(shape: tuple[int, int]) -> bool:
    """Whether the kernel can run a weight, (out, in)."""
    return shape[0] % TILE_OUTPUTS == 0 and shape[1] % TILE_INPUTS[-1] == 0


def tile_inputs(num_in: int) -> int:
    return next(size for size in TILE_INPUTS if num_in % size == 0)


def scale_pairs(groups: Groups, size: int) -> torch.Tensor:
    """(groups, out, 2): a scale, and the value of code 8, for every `size` inputs."""
    values = torch.stack((groups.scales, (8 - groups.zeros) * groups.scales), dim=-1)
    values = values.repeat_interleave(groups.group_size // size, dim=1)
    return values.to(torch.bfloat16).transpose(0, 1).contiguous()


def pairs_of_codes(codes: torch.Tensor) -> torch.Tensor:
    """Two neighbours in a byte, the first in the upper half: what the packer takes."""
    return (codes[:, ::2] << 4 | codes[:, 1::2]).contiguous()


def nibbles(words: torch.Tensor) -> torch.Tensor:
    """The codes of each last dimension's 32-bit words, lowest first: uint8."""
    halves = words.contiguous().view(torch.uint8).unsqueeze(-1)
    return torch.cat((halves & 15, halves >> 4), dim=-1).flatten(-2)


@cache
def layout_of(device: torch.device, tile: int) -> torch.Tensor:
    """Of each code of a tile, (8 outputs x `tile` inputs), the nibble it is packed into. The
    packer is asked, as nothing says so: it packs a tile of known digits."""
    return learn_layout(torch.ops.aten._convert_weight_to_int4pack, device, tile)


def learn_layout(pack: Pack, device: torch.device, tile: int) -> torch.Tensor:
    index = torch.arange(TILE_OUTPUTS * tile, device=device)
    source = torch.zeros_like(index)
    for shift in (0, 4, 8):
        digit = ((index >> shift) & 15).to(torch.uint8).view(TILE_OUTPUTS, tile)
        packed = pack(pairs_of_codes(digit), tile // 16)
        source += nibbles(packed.flatten()).long() << shift
    return source.argsort().int()


def dequantise_plainly(
    packed: torch.Tensor, layout: torch.Tensor, pairs: torch.Tensor
) -> torch.Tensor:
    """By torch's own ops, several passes over the weight."""
    down, across = packed.shape[:2]
    codes = nibbles(packed.flatten(2)).index_select(2, layout)
    codes = codes.view(down, across, TILE_OUTPUTS, -1).transpose(1, 2)
    num_groups, num_out = pairs.shape[:2]
    scales, middles = pairs.transpose(0, 1).unsqueeze(-2).unbind(-1)  # (out, groups, 1)
    values = codes.reshape(num_out, num_groups, -1).to(pairs.dtype).sub_(8)
    return torch.addcmul(middles, values, scales, out=values).view(num_out, -1)  # rounds once
