"""The inner loop of the Triton attention kernels, over tiles of paged keys and values.

Positions of a row are cut into tiles of TILE from 0 on, whatever the block size. Slots that no
query of the program sees are not read, so they may hold anything.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

TL_DTYPES = {
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
}
TILE_BYTES = 16384  # of the keys of a tile, as they are multiplied
NUM_STAGES = 5  # of which the table takes two: keys and values of the next two tiles are on the way


def dot_dtype(dtype: torch.dtype) -> tl.dtype:
    """What products run in. The interpreter cannot multiply bfloat16."""
    if dtype == torch.bfloat16 and triton.knobs.runtime.interpret:
        return tl.float32
    return TL_DTYPES[dtype]


def tile_size(padded_dim: int, dtype: torch.dtype) -> int:
    """Keys in a tile: a power of two. A cache of 8 bits is widened before it is multiplied."""
    return max(16, min(128, TILE_BYTES // (padded_dim * dtype.itemsize)))


def scales(*given: float | torch.Tensor) -> list[float | torch.Tensor]:
    """Numbers as floats, for which alone the kernels are compiled."""
    return [each if isinstance(each, torch.Tensor) else float(each) for each in given]


@triton.jit
def exponents(scale, softcap, HAS_SOFTCAP: tl.constexpr):
    """The weight of a product x is 2 ** (factor * x), or 2 ** (factor * tanh(y)) where scores are
    capped, with e ** (2 * y) = 2 ** (inner * x): powers of two are what the hardware has."""
    LOG2E: tl.constexpr = 1.4426950408889634
    if HAS_SOFTCAP:
        inner = 2.0 * LOG2E * scale / softcap
        factor = softcap * LOG2E
    else:
        inner = scale * 0.0
        factor = scale * LOG2E
    return inner, factor


@triton.jit
def attend_tiles(
    queries,  # (M, PADDED_DIM)
    best,  # (M): the largest score so far, before `factor`
    total,  # (M): the sum of the weights
    acc,  # (M, PADDED_DIM): the weighted sum of the values
    first,  # of the tiles
    last,
    position,  # (M): of each query
    begin,  # the first position that any query sees
    end,
    keys,  # of this head
    values,
    table,  # of this row
    stride_block,
    stride_token,
    inner,  # see exponents()
    factor,
    window,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    MASKED: tl.constexpr,  # or every query sees every key of these tiles
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    DOT_DTYPE: tl.constexpr,
):
    """The flash attention step over tiles `first` to `last`; gives back best, total and acc."""
    dims = tl.arange(0, PADDED_DIM)
    held = dims < HEAD_DIM
    for tile in range(first, last):
        key = tile * TILE + tl.arange(0, TILE)
        read = (key >= begin) & (key < end)
        if BLOCK_SIZE % TILE == 0:
            block = tl.load(table + tile * TILE // BLOCK_SIZE).to(tl.int64)
            slot = block * stride_block + (tile * TILE % BLOCK_SIZE) * stride_token
            slots = slot + tl.arange(0, TILE) * stride_token
        elif MASKED:
            blocks = tl.load(table + key // BLOCK_SIZE, mask=read, other=0).to(tl.int64)
            slots = blocks * stride_block + (key % BLOCK_SIZE) * stride_token
        else:
            blocks = tl.load(table + key // BLOCK_SIZE).to(tl.int64)
            slots = blocks * stride_block + (key % BLOCK_SIZE) * stride_token

        if MASKED:
            k_mask = held[:, None] & read[None, :]
            v_mask = read[:, None] & held[None, :]
        else:
            k_mask = held[:, None]
            v_mask = held[None, :]
        k = tl.load(keys + dims[:, None] + slots[None, :], mask=k_mask, other=0.0)
        scores = tl.dot(queries, k.to(DOT_DTYPE), input_precision="ieee")
        if HAS_SOFTCAP:  # tanh
            scores = 1.0 - 2.0 / (tl.exp2(scores * inner) + 1.0)
        if MASKED:
            visible = read[None, :] & (key[None, :] <= position[:, None])
            if HAS_WINDOW:
                visible = visible & (key[None, :] > position[:, None] - window)
            scores = tl.where(visible, scores, float("-inf"))

        highest = tl.maximum(best, tl.max(scores, 1))
        shift = highest * factor
        if MASKED:  # a query that sees none of these keys yet
            shift = tl.where(highest == float("-inf"), 0.0, shift)
        weights = tl.exp2(scores * factor - shift[:, None])
        fade = tl.exp2(best * factor - shift)
        total = total * fade + tl.sum(weights, 1)
        acc = acc * fade[:, None]
        v = tl.load(values + slots[:, None] + dims[None, :], mask=v_mask, other=0.0)
        acc = tl.dot(weights.to(DOT_DTYPE), v.to(DOT_DTYPE), acc, input_precision="ieee")
        best = highest
    return best, total, acc
