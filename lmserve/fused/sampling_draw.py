"""Triton kernel that draws: bisects for what top_k and top_p leave, then for the token."""

from __future__ import annotations

import triton
import triton.language as tl

from lmserve.fused.sampling_math import (
    INF,
    MIN_WEIGHT,
    NUM_COLUMNS,
    PENALISED,
    STREAM,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    count_token,
    keys_of,
    read,
    share_of,
    uniform,
    value_of,
    weights_of,
)
from lmserve.fused.sampling_passes import draw_row


@triton.jit
def cross(keys, amounts, low, high, goal):
    """The greatest key, below `high` and at least `low`, from which on the amounts sum to the
    goal; and the sum of those of greater keys."""
    low = low.to(tl.int64)
    high = high.to(tl.int64)
    above = tl.full([], 0, tl.int64)
    while high - low > 1:
        middle = low + (high - low) // 2
        amount = tl.sum(tl.where(keys >= middle.to(tl.int32), amounts, 0), axis=0)
        reached = amount >= goal
        low = tl.where(reached, middle, low)
        above = tl.where(reached, above, amount)
        high = tl.where(reached, high, middle)
    return low.to(tl.int32), above


@triton.jit
def draw_gathered(
    keys,
    weights,
    index,
    inside,
    best,
    temperature,
    low,
    mass,  # of all tokens
    top_k,
    min_weight,
    top_p,
    number,  # the uniform one
):
    """A token by its place in the order of the logits."""
    high = keys_of(best) + 1
    if top_k > 0:
        tie, above = cross(keys, inside.to(tl.int64), low, high, top_k)
        mass = tl.sum(tl.where(keys > tie, weights, 0), axis=0)
        mass += (top_k - above) * weights_of(value_of(tie), best, temperature)
    if min_weight > 0:
        least = tl.sum(tl.where(weights >= min_weight, weights, 0), axis=0)
        mass = tl.minimum(mass, least)
    if top_p < 1.0:
        goal = share_of(mass, top_p)
        tie, above = cross(keys, weights, low, high, goal)
        weight = weights_of(value_of(tie), best, temperature)
        mass = above + (goal - above + weight - 1) // weight * weight
    target = (number * mass.to(tl.float64)).to(tl.int64)
    tie, above = cross(keys, weights, low, high, target + 1)
    weight = tl.maximum(weights_of(value_of(tie), best, temperature), 1)
    nth = (target - above) // weight + 1
    ties = (inside & (keys == tie)).to(tl.int64)
    first = tl.min(-index, axis=0)
    place, _ = cross(-index, ties, first, tl.full([], 1, tl.int64), nth)
    return -place


@triton.jit
def draw_any(
    logits,
    counts,
    numbers,
    num_counted,
    vocab_size,
    best,
    temperature,
    masses,  # of the chunks
    total,
    number,
    COUNTED: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """A token by its place in the vocabulary."""
    target = (number * total.to(tl.float64)).to(tl.int64)
    before = tl.cumsum(masses, axis=0) <= target
    chunk = tl.sum(before.to(tl.int32), axis=0)
    target -= tl.sum(tl.where(before, masses, 0), axis=0)
    at = chunk * CHUNK + tl.arange(0, CHUNK)
    x = read(logits, counts, numbers, num_counted, at, at < vocab_size, COUNTED)
    cumulative = tl.cumsum(weights_of(x, best, temperature), axis=0)
    return chunk * CHUNK + tl.sum((cumulative <= target).to(tl.int32), axis=0)


@triton.jit(do_not_specialize_on_alignment=["order"])  # part of a larger tensor
def draw_kernel(
    logits,
    stride,
    table,
    numbers,
    counts,
    slots,
    order,  # the index of each row's uniform number
    bests,
    floors,
    masses,
    num_gathered,
    values,
    indices,
    tokens,
    vocab_size,
    num_chunks,
    COUNTED: tl.constexpr,
    COUNTING: tl.constexpr,
    CHUNKS: tl.constexpr,
    CHUNK: tl.constexpr,
    STEP: tl.constexpr,
    CAPACITY: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    best = tl.load(bests + row)
    if best == best:
        slot = tl.load(slots + row)
        logits += row * stride
        table += slot * NUM_COLUMNS
        numbers += slot * NUM_COLUMNS
        if COUNTED:
            counts += slot * vocab_size
        num_counted = tl.load(table + PENALISED).to(tl.int32) * vocab_size
        top_k = tl.load(table + TOP_K)
        min_weight = tl.load(table + MIN_WEIGHT)
        top_p = tl.load(numbers + TOP_P)
        temperature = tl.load(numbers + TEMPERATURE).to(tl.float32)
        number = uniform(tl.load(table + STREAM), tl.load(order + row))
        chunk = tl.arange(0, CHUNKS)
        mass = tl.load(masses + row * num_chunks + chunk, mask=chunk < num_chunks, other=0)
        total = tl.sum(mass, axis=0)
        if (top_k > 0) | (min_weight > 0) | (top_p < 1.0):
            floor = tl.load(floors + row)
            num = tl.load(num_gathered + row)
            place = tl.arange(0, CAPACITY)
            inside = place < num
            x = tl.load(values + row * CAPACITY + place, mask=inside, other=-INF)
            index = tl.load(indices + row * CAPACITY + place, mask=inside, other=0)
            weights = weights_of(x, best, temperature)  # 0 outside
            by_top_k = (top_k > 0) & (num >= top_k)
            by_min_p = weights_of(floor, best, temperature) < min_weight
            by_top_p = (top_k == 0) & (min_weight == 0)
            by_top_p = by_top_p & (share_of(total, top_p) <= tl.sum(weights, axis=0))
            if (num <= CAPACITY) & (by_top_k | by_min_p | by_top_p):
                token = draw_gathered(
                    keys_of(x), weights, index, inside, best, temperature, keys_of(floor), total,
                    tl.where(by_top_k, top_k, 0), min_weight, top_p, number,
                )  # fmt: skip
            else:
                token = draw_row(
                    logits, counts, numbers, num_counted, vocab_size, best, temperature, total,
                    top_k, min_weight, top_p, number, COUNTED, STEP,
                )  # fmt: skip
        else:
            token = draw_any(
                logits, counts, numbers, num_counted, vocab_size, best, temperature, mass, total,
                number, COUNTED, CHUNK,
            )  # fmt: skip
        # Sums made here may miss those of `weigh_kernel` by a last bit of exp, and a number that
        # falls between them finds nothing: the likeliest, which is there already, comes then.
        place = tl.minimum(tl.maximum(token.to(tl.int32), 0), vocab_size - 1)
        x = read(logits, counts, numbers, num_counted, place, place >= 0, COUNTED)
        found = (place == token) & (weights_of(x, best, temperature) > 0)
        token = tl.where(found, place, tl.load(tokens + row).to(tl.int32))
        tl.store(tokens + row, token.to(tl.int64))
        if COUNTING:
            count_token(counts, token, num_counted > 0)
