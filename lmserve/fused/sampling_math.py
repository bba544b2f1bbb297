"""What the kernels of sampling compute of a logit, as functions of Triton."""

from __future__ import annotations

import triton
import triton.language as tl

from lmserve.fused import sampling_base
from lmserve.fused.sampling_base import Column

ONE = tl.constexpr(float(sampling_base.ONE))
LARGEST = tl.constexpr(sampling_base.LARGEST)
MAX_COUNT = tl.constexpr(sampling_base.MAX_COUNT)
INF = tl.constexpr(float("inf"))

TOP_K = tl.constexpr(int(Column.TOP_K))
MIN_WEIGHT = tl.constexpr(int(Column.MIN_WEIGHT))
STREAM = tl.constexpr(int(Column.STREAM))
PENALISED = tl.constexpr(int(Column.PENALISED))
TEMPERATURE = tl.constexpr(int(Column.TEMPERATURE))
TOP_P = tl.constexpr(int(Column.TOP_P))
REPETITION = tl.constexpr(int(Column.REPETITION))
PRESENCE = tl.constexpr(int(Column.PRESENCE))
FREQUENCY = tl.constexpr(int(Column.FREQUENCY))
NUM_COLUMNS = tl.constexpr(len(Column))


@triton.jit
def keys_of(x):
    """int32 in the order of the floats."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def value_of(key):
    bits = key ^ ((key >> 31) & 0x7FFFFFFF)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def weights_of(x, best, temperature):
    return (tl.exp((x - best) / temperature) * ONE).to(tl.int64)


@triton.jit
def mix(z):
    z = (z ^ ((z >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    z = (z ^ ((z >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return z ^ ((z >> 31) & 0x1FFFFFFFF)


@triton.jit
def uniform(stream, index):
    mixed = mix(stream + (index + 1) * -0x61C8864680B583EB)
    return ((mixed >> 16) & 0xFFFFFFFFFFFF).to(tl.float64) * 3.552713678800501e-15  # 2**-48


@triton.jit
def read(logits, counts, numbers, num_counted, at, inside, COUNTED: tl.constexpr):
    """Logits of a row in float32, penalised where it has counts; -inf outside."""
    x = tl.load(logits + at, mask=inside, other=-INF).to(tl.float32)
    if COUNTED:
        num = tl.load(counts + at, mask=at < num_counted, other=0).to(tl.int32)
        repetition = tl.load(numbers + REPETITION).to(tl.float32)
        presence = tl.load(numbers + PRESENCE).to(tl.float32)
        frequency = tl.load(numbers + FREQUENCY).to(tl.float32)
        y = tl.where(x > 0.0, tl.div_rn(x, repetition), x * repetition)
        y -= tl.where(num > 0, presence + frequency * num.to(tl.float32), 0.0)
        y = tl.minimum(tl.maximum(y, -LARGEST), LARGEST)
        x = tl.where((num != 0) & (x > -INF), y, x)
    return tl.where(x == 0.0, 0.0, x)  # a zero has no sign


@triton.jit
def count_token(counts, token, which):
    num = tl.load(counts + token).to(tl.int32)
    num = tl.minimum(tl.maximum(num, 0), MAX_COUNT - 1) + 1
    tl.store(counts + token, num.to(tl.int16), mask=which)


@triton.jit
def share_of(mass, top_p):
    """The least whole number that is such a share."""
    exact = mass.to(tl.float64) * top_p
    share = exact.to(tl.int64)
    share = tl.where(share.to(tl.float64) < exact, share + 1, share)
    return tl.where(top_p < 1.0, tl.minimum(share, mass), mass)
