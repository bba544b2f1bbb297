"""The long way to draw, in Triton: passes over all logits of a row, where what was gathered does
not hold the tokens that may be drawn."""

from __future__ import annotations

import triton
import triton.language as tl

from lmserve.fused.sampling_math import INF, keys_of, read, share_of, value_of, weights_of

# What is summed of the tokens of a row.
COUNT = tl.constexpr(0)  # 1 for each whose key is at least the limit
MASS = tl.constexpr(1)  # their weights
LEAST = tl.constexpr(2)  # the weights that are at least the limit
TIES = tl.constexpr(3)  # 1 for each of one key whose index, negative, is at least the limit


@triton.jit
def sum_row(
    logits,
    counts,
    numbers,
    num_counted,
    vocab_size,
    best,
    temperature,
    limit,
    step,
    tie,
    WHAT: tl.constexpr,
    COUNTED: tl.constexpr,
    STEP: tl.constexpr,
):
    """Of a row, beyond the limit, and beyond one and two steps more."""
    total = tl.zeros([STEP], dtype=tl.int64)
    total_1 = tl.zeros([STEP], dtype=tl.int64)
    total_2 = tl.zeros([STEP], dtype=tl.int64)
    for start in range(0, vocab_size, STEP):
        at = start + tl.arange(0, STEP)
        inside = at < vocab_size
        x = read(logits, counts, numbers, num_counted, at, inside, COUNTED)
        amount = inside.to(tl.int64)
        if WHAT == COUNT:
            place = keys_of(x).to(tl.int64)
        elif WHAT == TIES:
            place = -at.to(tl.int64)
            amount = (inside & (keys_of(x) == tie)).to(tl.int64)
        elif WHAT == MASS:
            place = keys_of(x).to(tl.int64)
            amount = weights_of(x, best, temperature)
        else:
            place = weights_of(x, best, temperature)
            amount = place
        total += tl.where(place >= limit, amount, 0)
        total_1 += tl.where(place >= limit + step, amount, 0)
        total_2 += tl.where(place >= limit + 2 * step, amount, 0)
    return tl.sum(total, axis=0), tl.sum(total_1, axis=0), tl.sum(total_2, axis=0)


@triton.jit
def cross_row(
    logits,
    counts,
    numbers,
    num_counted,
    vocab_size,
    best,
    temperature,
    low,
    high,
    goal,
    tie,
    WHAT: tl.constexpr,
    COUNTED: tl.constexpr,
    STEP: tl.constexpr,
):
    """As `sampling_draw.cross`, four ways at a time."""
    low = low.to(tl.int64)
    high = high.to(tl.int64)
    above = tl.full([], 0, tl.int64)
    while high - low > 1:
        step = (high - low + 3) // 4
        first, second, third = sum_row(
            logits,
            counts,
            numbers,
            num_counted,
            vocab_size,
            best,
            temperature,
            low + step,
            step,
            tie,
            WHAT,
            COUNTED,
            STEP,
        )
        num = (first >= goal).to(tl.int64) + (second >= goal).to(tl.int64)
        num += (third >= goal).to(tl.int64)
        beyond = tl.where(num == 0, first, tl.where(num == 1, second, third))
        low += num * step
        above = tl.where(low + step < high, beyond, above)
        high = tl.minimum(low + step, high)
    return low, above


@triton.jit
def draw_row(
    logits,
    counts,
    numbers,
    num_counted,
    vocab_size,
    best,
    temperature,
    mass,
    top_k,
    min_weight,
    top_p,
    number,
    COUNTED: tl.constexpr,
    STEP: tl.constexpr,
):
    """As `sampling_draw.draw_gathered`, of all tokens."""
    low = keys_of(tl.full([], -INF, tl.float32)).to(tl.int64)
    high = keys_of(best).to(tl.int64) + 1
    if top_k > 0:
        tie, above = cross_row(
            logits, counts, numbers, num_counted, vocab_size, best, temperature,
            low, high, top_k, high, COUNT, COUNTED, STEP,
        )  # fmt: skip
        mass, _, _ = sum_row(
            logits, counts, numbers, num_counted, vocab_size, best, temperature,
            tie + 1, low * 0, high, MASS, COUNTED, STEP,
        )  # fmt: skip
        mass += (top_k - above) * weights_of(value_of(tie.to(tl.int32)), best, temperature)
    if min_weight > 0:
        least, _, _ = sum_row(
            logits, counts, numbers, num_counted, vocab_size, best, temperature,
            min_weight, low * 0, high, LEAST, COUNTED, STEP,
        )  # fmt: skip
        mass = tl.minimum(mass, least)
    if top_p < 1.0:
        goal = share_of(mass, top_p)
        tie, above = cross_row(
            logits, counts, numbers, num_counted, vocab_size, best, temperature,
            low, high, goal, high, MASS, COUNTED, STEP,
        )  # fmt: skip
        weight = weights_of(value_of(tie.to(tl.int32)), best, temperature)
        mass = above + (goal - above + weight - 1) // weight * weight
    target = (number * mass.to(tl.float64)).to(tl.int64)
    tie, above = cross_row(
        logits, counts, numbers, num_counted, vocab_size, best, temperature,
        low, high, target + 1, high, MASS, COUNTED, STEP,
    )  # fmt: skip
    weight = tl.maximum(weights_of(value_of(tie.to(tl.int32)), best, temperature), 1)
    nth = (target - above) // weight + 1
    place, _ = cross_row(
        logits, counts, numbers, num_counted, vocab_size, best, temperature,
        low * 0 - vocab_size, low * 0 + 1, nth, tie, TIES, COUNTED, STEP,
    )  # fmt: skip
    return (-place).to(tl.int32)
