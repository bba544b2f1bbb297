"""Triton kernels of sampling: which pass over the logits computes what.

1. `maxima_kernel`, by chunks of the vocabulary: the likeliest of every group of tokens.
2. `likeliest_kernel`, by rows: the likeliest token, and all that greedy rows need. `settle_kernel`
   does the same, and for the other rows finds a floor: so many groups have a token above it.
3. `weigh_kernel`, by chunks: weights, and the tokens above the floor, a few thousand, gathered.
4. `draw_kernel` (`sampling_draw`), by rows: finds the token among those gathered, or in the whole
   row where they turn out too few or too many.

They are gathered in any order, but only sums of whole numbers are made of them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lmserve.fused.sampling_math import (
    INF,
    MIN_WEIGHT,
    NUM_COLUMNS,
    PENALISED,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    count_token,
    keys_of,
    read,
    value_of,
    weights_of,
)


@triton.jit
def maxima_kernel(
    logits,
    stride,
    table,
    numbers,
    counts,
    slots,
    maxima,
    vocab_size,
    num_groups,
    BANNED: tl.constexpr,
    COUNTED: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    group = tl.program_id(0) * GROUPS + tl.arange(0, GROUPS)
    at = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    inside = at < vocab_size
    given = tl.load(logits + row * stride + at, mask=inside, other=0.0).to(tl.float32)
    bad = (given != given) | (given == INF)
    if not BANNED:
        bad = bad | (given == -INF)
    x = tl.where(inside, given, -INF)
    if COUNTED:
        slot = tl.load(slots + row)
        num_counted = tl.load(table + slot * NUM_COLUMNS + PENALISED).to(tl.int32) * vocab_size
        x = read(
            logits + row * stride,
            counts + slot * vocab_size,
            numbers + slot * NUM_COLUMNS,
            num_counted,
            at,
            inside,
            COUNTED,
        )
    best = tl.max(tl.where(bad, -INF, x), axis=1)
    best = tl.where(best == 0.0, 0.0, best)  # without a sign, as `read` gives it
    best = tl.where(tl.max(bad.to(tl.int32), axis=1) > 0, float("nan"), best)
    tl.store(maxima + row * num_groups + group, best, mask=group < num_groups)


@triton.jit
def find_likeliest(
    logits,
    counts,
    numbers,
    num_counted,
    maximum,  # of each group
    group,
    vocab_size,
    COUNTED: tl.constexpr,
    TILE: tl.constexpr,
    GROUP: tl.constexpr,
):
    """A row's greatest logit, the first token that has it, and whether all are numbers."""
    bad = maximum != maximum
    finite = tl.max(bad.to(tl.int32), axis=0) == 0
    best = tl.max(tl.where(bad, -INF, maximum), axis=0)
    first = tl.min(tl.where(maximum == best, group, TILE), axis=0)
    at = first * GROUP + tl.arange(0, GROUP)
    x = read(logits, counts, numbers, num_counted, at, at < vocab_size, COUNTED)
    token = tl.min(tl.where((x == best) & (at < vocab_size), at, vocab_size), axis=0)
    alive = finite & (best > -INF)
    return best, tl.where(alive, token, 0), finite, alive


@triton.jit
def likeliest_kernel(
    logits,
    stride,
    maxima,
    tokens,
    finites,
    vocab_size,
    num_groups,
    TILE: tl.constexpr,
    GROUP: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, TILE)
    maximum = tl.load(maxima + row * num_groups + group, mask=group < num_groups, other=-INF)
    start = logits + row * stride
    _, token, finite, _ = find_likeliest(
        start, start, start, 0, maximum, group, vocab_size, False, TILE, GROUP
    )
    tl.store(tokens + row, token.to(tl.int64))
    tl.store(finites + row, finite)


@triton.jit
def settle_kernel(
    logits,
    stride,
    table,
    numbers,
    counts,
    slots,
    maxima,
    tokens,
    finites,
    alives,
    bests,
    floors,
    num_gathered,
    vocab_size,
    num_groups,
    num_wanted,
    COUNTED: tl.constexpr,
    COUNTING: tl.constexpr,
    TILE: tl.constexpr,
    GROUP: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row)
    table += slot * NUM_COLUMNS
    numbers += slot * NUM_COLUMNS
    num_counted = tl.load(table + PENALISED).to(tl.int32) * vocab_size
    group = tl.arange(0, TILE)
    present = group < num_groups
    maximum = tl.load(maxima + row * num_groups + group, mask=present, other=-INF)
    if COUNTED:
        counts += slot * vocab_size
    best, token, finite, alive = find_likeliest(
        logits + row * stride,
        counts,
        numbers,
        num_counted,
        maximum,
        group,
        vocab_size,
        COUNTED,
        TILE,
        GROUP,
    )
    tl.store(tokens + row, token.to(tl.int64))
    tl.store(finites + row, finite)
    tl.store(alives + row, alive)
    settled = (tl.load(numbers + TEMPERATURE) <= 0.0) | (alive == 0)
    if COUNTING:
        count_token(counts, token, settled & alive & (num_counted > 0))
    tl.store(bests + row, tl.where(settled, float("nan"), best))
    tl.store(num_gathered + row, 0)

    top_k = tl.load(table + TOP_K)
    cuts = (top_k > 0) | (tl.load(table + MIN_WEIGHT) > 0) | (tl.load(numbers + TOP_P) < 1.0)
    if cuts & (settled == 0):
        num = tl.where((top_k > 0) & (top_k < num_wanted), top_k, num_wanted)
        key = keys_of(maximum)
        low = tl.min(tl.where(present, key, 0x7FFFFFFF), axis=0).to(tl.int64)
        high = keys_of(best).to(tl.int64) + 1
        while high - low > 1:
            middle = low + (high - low) // 2
            above = tl.sum((present & (key >= middle.to(tl.int32))).to(tl.int32), axis=0)
            low = tl.where(above >= num, middle, low)
            high = tl.where(above >= num, high, middle)
        tl.store(floors + row, value_of(low.to(tl.int32)))
    else:
        tl.store(floors + row, INF)


@triton.jit
def weigh_kernel(
    logits,
    stride,
    table,
    numbers,
    counts,
    slots,
    bests,
    floors,
    masses,
    num_gathered,
    values,
    indices,
    vocab_size,
    num_chunks,
    COUNTED: tl.constexpr,
    CHUNK: tl.constexpr,
    CAPACITY: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    best = tl.load(bests + row)
    if best == best:
        slot = tl.load(slots + row)
        numbers += slot * NUM_COLUMNS
        num_counted = tl.load(table + slot * NUM_COLUMNS + PENALISED).to(tl.int32) * vocab_size
        if COUNTED:
            counts += slot * vocab_size
        at = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
        inside = at < vocab_size
        x = read(logits + row * stride, counts, numbers, num_counted, at, inside, COUNTED)
        temperature = tl.load(numbers + TEMPERATURE).to(tl.float32)
        mass = tl.sum(weights_of(x, best, temperature), axis=0)
        tl.store(masses + row * num_chunks + tl.program_id(0), mass)
        gathered = (inside & (x >= tl.load(floors + row))).to(tl.int32)
        num = tl.sum(gathered, axis=0)
        if num > 0:
            start = tl.atomic_add(num_gathered + row, num)
            place = start + tl.cumsum(gathered, axis=0) - 1
            fits = (gathered > 0) & (place < CAPACITY)
            tl.store(values + row * CAPACITY + place, x, mask=fits)
            tl.store(indices + row * CAPACITY + place, at, mask=fits)
