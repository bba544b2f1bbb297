"""The Triton kernels against their twins: under the interpreter, or on the GPU there is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from cases import DEVICE, FP8, TRITON, cache_of, norm_of, places, qk_norm_of, randn, tables_of

from lmserve.fused.base import LayerCache, Ops
from lmserve.fused.plain import PlainOps

PLAIN = PlainOps()
DTYPES = [torch.float32, torch.bfloat16]


def assert_close(got: torch.Tensor, expected: torch.Tensor) -> None:
    """To the last bit or so: what is rounded from float32 may fall on the other side."""
    assert got.dtype == expected.dtype
    if got.dtype == torch.bool:
        assert torch.equal(got, expected)
        return
    step = {torch.float32: 1e-5, torch.bfloat16: 2**-7, FP8: 2**-3}[got.dtype]
    got, expected = got.float(), expected.float()
    torch.testing.assert_close(got, expected, rtol=step, atol=step, equal_nan=True)
    if step > 1e-3:
        same = (got == expected) | (got.isnan() & expected.isnan())
        assert (~same).sum() <= 1 + len(same.view(-1)) // 100


def both(compute: Callable[[Ops], tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, ...]:
    """What the kernels give, once the twins have said what is right."""
    got = compute(TRITON)
    for ours, expected in zip(got, compute(PLAIN), strict=True):
        assert_close(ours, expected)
    return got


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rounds_first", [True, False])
@pytest.mark.parametrize(("num_rows", "width"), [(1, 1000), (3, 576)])
def test_norms(dtype, rounds_first, num_rows, width):
    x, start = randn(num_rows, width, dtype=dtype), randn(num_rows, width, dtype=dtype, seed=9)
    norm, post = (norm_of(width, dtype, rounds_first=rounds_first, seed=s) for s in (1, 2))

    def compute(ops: Ops) -> tuple[torch.Tensor, ...]:
        residual = start.clone()
        return (
            ops.norm(x, norm),
            ops.add_norm(x, residual, norm),
            ops.add_norm(x, residual, norm, post),
            ops.add_finite(x, residual),
            ops.add_finite(x, residual, post),
            residual,
        )

    both(compute)


def test_the_sum_is_rounded_before_its_norm():
    x, residual = randn(2, 64, dtype=torch.bfloat16), randn(2, 64, dtype=torch.bfloat16, seed=9)
    norm = norm_of(64, torch.bfloat16)
    expected = PLAIN.norm(x + residual, norm)
    assert_close(TRITON.add_norm(x, residual, norm), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_stays_alone(dtype):
    x = randn(5, 100, dtype=dtype)
    x[1, 7], x[2, 99], x[4, 0] = torch.nan, torch.inf, -torch.inf
    norm = norm_of(100, dtype)

    def compute(ops: Ops) -> tuple[torch.Tensor, ...]:
        residual = torch.zeros_like(x)
        return ops.add_norm(x, residual, norm), ops.add_finite(x, torch.zeros_like(x)), residual

    out, finite, _ = both(compute)
    assert finite.tolist() == [True, False, False, True, False]
    assert out.isfinite().all(-1).tolist() == finite.tolist()


@pytest.mark.parametrize(
    ("num_tokens", "num_heads", "num_kv_heads", "head_dim", "normed", "dtype", "cache_dtype"),
    [
        (1, 5, 1, 80, None, torch.float32, torch.float32),
        (3, 4, 2, 256, False, torch.float32, torch.float32),
        (3, 9, 3, 128, True, torch.float32, FP8),
        (17, 2, 1, 64, True, torch.bfloat16, torch.bfloat16),
        (1, 5, 1, 80, True, torch.bfloat16, FP8),
        (3, 9, 3, 128, None, torch.bfloat16, FP8),
        (1, 4, 2, 256, False, torch.bfloat16, torch.bfloat16),
    ],
)
def test_rope_write(num_tokens, num_heads, num_kv_heads, head_dim, normed, dtype, cache_dtype):
    qkv = 100 * randn(num_tokens, (num_heads + 2 * num_kv_heads) * head_dim, dtype=dtype)
    positions, slots = places(num_tokens, 50), places(num_tokens, 40, seed=7)
    tables = tables_of(head_dim, dtype)
    qk_norm = None if normed is None else qk_norm_of(head_dim, dtype, rounds_first=normed)
    start = cache_of(num_kv_heads, head_dim, cache_dtype)

    def compute(ops: Ops) -> tuple[torch.Tensor, ...]:
        cache = LayerCache(start.keys.clone(), start.values.clone(), start.k_scale, start.v_scale)
        q = ops.rope_write(qkv, positions, tables, slots, cache, qk_norm)
        return q, cache.keys, cache.values

    _, keys, values = both(compute)
    others = torch.ones(40, dtype=torch.bool, device=DEVICE)
    others[slots] = False
    assert torch.equal(keys.float()[others], start.keys.float()[others])
    assert torch.equal(values.float()[others], start.values.float()[others])


def test_float8_saturates_and_keeps_what_is_no_number():
    qkv = torch.full((2, 3 * 16), 1e5, device=DEVICE)
    qkv[0, 16:32], qkv[0, 40], qkv[1, 40:] = -1e5, torch.nan, torch.inf
    positions, slots = torch.zeros(2, dtype=torch.int64, device=DEVICE), places(2, 40)

    def compute(ops: Ops) -> tuple[torch.Tensor, ...]:
        cache = cache_of(1, 16, FP8)
        ops.rope_write(qkv, positions, tables_of(16, torch.float32), slots, cache)
        return cache.keys, cache.values

    keys, values = (part.float()[slots, 0] for part in both(compute))
    assert keys[0].eq(-448).all() and keys[1].eq(448).all()
    assert values[0].isnan().nonzero().tolist() == [[8]]
    assert values[1].eq(448).all()


def test_a_cache_between_others():
    """Slots of a larger tensor: the kernel goes by strides."""
    whole = torch.zeros(2, 10, 4, 2, 16, device=DEVICE)
    keys, values = whole[:, :, 1].unbind()
    qkv, slots = randn(3, 6 * 16), places(3, 10)
    tables = tables_of(16, torch.float32)
    TRITON.rope_write(qkv, places(3, 50), tables, slots, LayerCache(keys, values))
    expected = cache_of(2, 16, torch.float32, num_slots=10)
    PLAIN.rope_write(qkv, places(3, 50), tables, slots, expected)
    assert_close(keys[slots], expected.keys[slots])
    assert_close(values[slots], expected.values[slots])
    assert whole[:, :, [0, 2, 3]].eq(0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["silu", "gelu_pytorch_tanh"])
@pytest.mark.parametrize(("num_rows", "width"), [(1, 1536), (3, 1000)])
def test_gate(dtype, activation, num_rows, width):
    hidden = 3 * randn(num_rows, 2 * width, dtype=dtype)
    hidden[0, :4] = torch.tensor([-90.0, 90.0, -6.0, torch.nan])
    both(lambda ops: (ops.gate(hidden, activation),))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_depends_on_nothing_but_the_row(dtype):
    x, residual = randn(6, 200, dtype=dtype), randn(6, 200, dtype=dtype, seed=3)
    qkv = randn(6, 5 * 32, dtype=dtype)
    positions, slots, tables = places(6, 50), places(6, 40), tables_of(32, dtype)
    norm, qk_norm = norm_of(200, dtype), qk_norm_of(32, dtype)

    def compute(rows: slice) -> tuple[torch.Tensor, ...]:
        cache = cache_of(1, 32, dtype)
        place = slots[rows]
        q = TRITON.rope_write(qkv[rows], positions[rows], tables, place, cache, qk_norm)
        normed = TRITON.add_norm(x[rows], residual[rows].clone(), norm)
        return q, cache.keys[place], cache.values[place], normed, TRITON.gate(x[rows], "silu")

    for alone, among in zip(compute(slice(4, 5)), compute(slice(0, 6)), strict=True):
        assert torch.equal(alone[0], among[4])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_out", "num_in", "has_bias"), [(37, 1100, True), (16, 256, False)])
def test_products_with_one_row(dtype, num_out, num_in, has_bias):
    x, weight = randn(1, num_in, dtype=dtype), randn(num_out, num_in, dtype=dtype, seed=1)
    bias = randn(num_out, dtype=dtype, seed=2) if has_bias else None
    expected = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
    close = 1e-4 if dtype == torch.float32 else 2**-7
    assert TRITON.row_tilings
    for tiling in TRITON.row_tilings:
        got = TRITON.row_product(x, weight, bias, tiling)
        assert got.dtype == dtype
        torch.testing.assert_close(got.float(), expected, atol=close, rtol=close)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["silu", "gelu_pytorch_tanh"])
def test_a_gated_product_is_the_gate_of_the_product(dtype, activation):
    x, weight = randn(1, 300, dtype=dtype), 0.1 * randn(2 * 21, 300, dtype=dtype, seed=1)
    bias = randn(2 * 21, dtype=dtype, seed=2)
    for tiling in TRITON.row_tilings:
        whole = TRITON.row_product(x, weight, bias, tiling)
        got = TRITON.row_product(x, weight, bias, tiling, activation)
        assert got.shape == (1, 21)
        assert_close(got, PLAIN.gate(whole, activation))
