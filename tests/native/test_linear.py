"""Products and look-ups of every form of a weight against torch, on the same numbers."""

from __future__ import annotations

from ctypes import byref

import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType
from gguf.quants import quantize

from lmserve.native.library import INT4, INT8, Kernels, address
from lmserve.native.weights import PackedWeight, Packer
from lmserve.weights.gguf_file import TENSOR_TYPES
from lmserve.weights.quant.ggml import GGMLTensor

ROWS = (1, 2, 3, 4, 5, 7, 8, 9, 16, 22, 27, 33, 130)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
QUANTISED = ["Q4_0", "Q4_1", "Q4_K", "Q8_0", "Q5_0", "Q5_1", "Q6_K"]
HALVES = {"Q4_K": (0, 2), "Q6_K": (208,)}  # which the gguf package cannot write
LEVELS = {INT4: 127, INT8: 32767}  # of activations
DENSE_SIZES = [(1, 1), (7, 5), (33, 70), (130, 257)]
SIZES = [(1, 32), (5, 64), (17, 96), (130, 320)]


def randn(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def quantised(kind: str, num_out: int, num_in: int) -> GGMLTensor:
    if kind not in HALVES:
        data = quantize(randn(num_out, num_in).numpy() * 0.1, GGMLQuantizationType[kind])
        return GGMLTensor(kind, torch.from_numpy(data), (num_out, num_in))
    num_in = -(-num_in // 256) * 256
    size = {name: size for name, _, size in TENSOR_TYPES.values()}[kind]
    random = np.random.default_rng(0)
    blocks = random.integers(0, 256, (num_out * num_in // 256, size), dtype=np.uint8)
    for start in HALVES[kind]:
        scales = random.uniform(-1e-3, 1e-3, len(blocks)).astype(np.float16)
        blocks[:, start : start + 2] = scales.view(np.uint8).reshape(-1, 2)
    return GGMLTensor(kind, torch.from_numpy(blocks).view(num_out, -1), (num_out, num_in))


def linear(kernels: Kernels, weight: PackedWeight, x: torch.Tensor) -> torch.Tensor:
    out = torch.full((len(x), weight.shape[0]), torch.nan)
    place, struct = address(out), weight.struct()
    kernels.library.lms_linear(kernels.pool, byref(struct), address(x), len(x), place)
    return out


def rows_of(kernels: Kernels, weight: PackedWeight, index: list[int]) -> torch.Tensor:
    out = torch.full((len(index), weight.shape[1]), torch.nan)
    rows = torch.tensor(index)
    kernels.library.lms_rows(byref(weight.struct()), address(rows), len(rows), address(out))
    return out


def as_multiplied(x: torch.Tensor, form: int) -> torch.Tensor:
    """Activations as the product of integers sees them: a scale for each 32 of a row."""
    groups = x.view(len(x), -1, 32)
    peak = groups.abs().amax(-1, keepdim=True)
    levels = torch.tensor(float(LEVELS[form]))
    codes = (groups * (levels / peak)).round()
    return (codes.double() * (peak / levels).double()).view(x.shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_bias", [False, True])
def test_dense(kernels, dtype, with_bias):
    packer = Packer(kernels.library)
    for num_out, num_in in DENSE_SIZES:
        values = randn(num_out, num_in).to(dtype)
        bias = randn(num_out, seed=1) if with_bias else None
        weight = packer.pack(values, dtype, bias=bias)
        assert torch.equal(rows_of(kernels, weight, [num_out - 1, 0]), values[[-1, 0]].float())
        for num_rows in ROWS:
            x = randn(num_rows, num_in, seed=num_rows)
            exact = x.double() @ values.double().T + (0 if bias is None else bias.double())
            out = linear(kernels, weight, x)
            torch.testing.assert_close(out.double(), exact, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kind", QUANTISED)
def test_quantised(kernels, kind):
    packer = Packer(kernels.library)
    for num_out, num_in in SIZES:
        tensor = quantised(kind, num_out, num_in)
        num_in = tensor.shape[1]
        bias = randn(num_out, seed=1)
        weight = packer.pack(tensor, torch.float32, bias=bias)
        assert weight.form == (INT4 if kind.startswith("Q4") else INT8)
        values = rows_of(kernels, weight, list(range(num_out)))
        for num_rows in ROWS:
            x = randn(num_rows, num_in, seed=num_rows)
            exact = as_multiplied(x, weight.form) @ values.double().T + bias.double()
            out = linear(kernels, weight, x)
            torch.testing.assert_close(out.double(), exact, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "close"),
    [
        *((kind, 0) for kind in ("Q4_0", "Q4_1", "Q8_0", "Q5_0")),
        *(("Q4_K", 1e-3), ("Q5_1", 5e-3), ("Q6_K", 5e-3)),
    ],
)
def test_values_are_the_file_s(kernels, kind, close):
    tensor = quantised(kind, 21, 256)
    weight = Packer(kernels.library).pack(tensor, torch.float32)
    got, exact = rows_of(kernels, weight, [20, 3, 3, 0]), tensor.dequantise()[[20, 3, 3, 0]]
    peak = exact.view(4, -1, 32).abs().amax(-1).repeat_interleave(32, 1)
    assert ((got - exact).abs() <= close * peak + 1e-7).all()


def test_a_code_that_8_bits_hold_on_one_side_only(kernels):
    data = torch.full((8, 34), 128, dtype=torch.uint8)  # codes of -128
    data[:, :2] = torch.tensor([0.5], dtype=torch.float16).view(torch.uint8)
    weight = Packer(kernels.library).pack(GGMLTensor("Q8_0", data, (8, 32)), torch.float32)
    values = rows_of(kernels, weight, list(range(8)))
    torch.testing.assert_close(values, torch.full((8, 32), -64.0), atol=0, rtol=1e-3)


def weights_of_every_form(kernels: Kernels) -> list[PackedWeight]:
    packer = Packer(kernels.library)
    dense = [packer.pack(randn(75, 160), dtype) for dtype in DTYPES]
    return dense + [packer.pack(quantised(kind, 75, 160), DTYPES[0]) for kind in ("Q4_1", "Q8_0")]


def test_a_row_s_bits_do_not_depend_on_the_others(kernels):
    for weight in weights_of_every_form(kernels):
        x = randn(200, 160)
        whole = linear(kernels, weight, x)
        for count in (*ROWS, 64, 199):
            assert torch.equal(linear(kernels, weight, x[:count]), whole[:count])
            assert torch.equal(linear(kernels, weight, x[200 - count :]), whole[200 - count :])
        louder = x.clone()
        louder[1::2] *= 1e4
        assert torch.equal(linear(kernels, weight, louder)[::2], whole[::2])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_in_its_row_and_is_seen(kernels, bad):
    for weight in weights_of_every_form(kernels):
        for num_rows in (1, 3, 9, 33):
            x = randn(num_rows, 160)
            clean = linear(kernels, weight, x)
            x[num_rows // 2, 77] = bad
            out = linear(kernels, weight, x)
            assert not out[num_rows // 2].isfinite().any()
            out[num_rows // 2] = clean[num_rows // 2]
            assert torch.equal(out, clean)


def test_zeros_and_extremes(kernels):
    for weight in weights_of_every_form(kernels):
        zeros = torch.zeros(5, 160)
        assert torch.equal(linear(kernels, weight, zeros), torch.zeros(5, 75))
        x = randn(5, 160)
        for scale in (2.0**-60, 2.0**40):
            got, expected = linear(kernels, weight, x * scale), linear(kernels, weight, x) * scale
            torch.testing.assert_close(got, expected, atol=0, rtol=1e-4)


def test_largest_codes_do_not_overflow(kernels):
    """Every code and every activation at its limit, of one sign."""
    packer = Packer(kernels.library)
    for sign in (1.0, -1.0):
        for kind, width in (("Q4_1", 320), ("Q8_0", 320)):
            values = torch.full((40, width), 2.0)
            if kind == "Q4_1":
                values[:, ::32] = 0.0
            data = torch.from_numpy(quantize(values.numpy(), GGMLQuantizationType[kind]))
            tensor = GGMLTensor(kind, data, (40, width))
            for num_rows in (9, 40):
                x = torch.full((num_rows, width), sign)
                exact = x @ tensor.dequantise().T
                out = linear(kernels, packer.pack(tensor, torch.float32), x)
                torch.testing.assert_close(out, exact, atol=1e-3, rtol=1e-4)
