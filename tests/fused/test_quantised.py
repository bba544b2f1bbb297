"""The Triton kernels of quantised products against their twins."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cases import DEVICE, randn

from lmserve.fused import float8_blocks
from lmserve.fused.float8 import round_rows
from lmserve.fused.int4 import dequantise
from lmserve.fused.kernels import TritonOps
from lmserve.fused.plain import PlainOps
from lmserve.models.linear import Numerics
from lmserve.models.linears.device import DeviceLinears
from lmserve.models.linears.float8 import Float8Linear, Float8Twin
from lmserve.models.linears.int4 import TILE_OUTPUTS, dequantise_plainly
from lmserve.weights.quant import float8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_rows", "width"), [(1, 64), (3, 576)])
def test_rows_rounded_to_float8(dtype, num_rows, width):
    x = randn(num_rows, width, dtype=dtype)
    x[-1, 5] = 300
    (got, scales), (expected, exact) = round_rows(x), float8.round_rows(x)
    torch.testing.assert_close(scales, exact, rtol=1e-6, atol=0)
    assert got.dtype == torch.float8_e4m3fn
    close(got, expected)


def test_rows_of_zeros_and_of_what_is_not_finite():
    x = randn(4, 64)
    x[1] = 0
    x[2, 3], x[3, 4] = torch.nan, torch.inf
    got, scales = round_rows(x)
    assert torch.equal(got[1].float(), torch.zeros(64, device=DEVICE))
    values = got.float() * scales
    assert values[:2].isfinite().all()
    assert not values[2].isfinite().all()
    assert not values[3].isfinite().all()


@pytest.mark.parametrize(
    ("tile", "num_out", "num_in", "group"), [(128, 16, 256, 64), (32, 24, 96, 32)]
)
def test_a_packed_weight_dequantised(tile, num_out, num_in, group):
    generator = torch.Generator().manual_seed(0)
    shape = (num_out // TILE_OUTPUTS, num_in // tile, 32, tile // 32)
    packed = torch.randint(-(2**31), 2**31, shape, generator=generator).int().to(DEVICE)
    layout = torch.randperm(TILE_OUTPUTS * tile, generator=generator).int().to(DEVICE)
    pairs = randn(num_in // group, num_out, 2, dtype=torch.bfloat16)
    got = dequantise(packed, layout, pairs)
    assert got.shape == (num_out, num_in)
    close(got, dequantise_plainly(packed, layout, pairs))


@pytest.mark.parametrize(("num_rows", "num_in"), [(1, 256), (5, 192), (18, 128)])
def test_products_with_weights_in_blocks(num_rows, num_in):
    data, _ = float8.round_rows(randn(80, num_in, seed=1))
    scales = 0.1 + randn(1, -(-num_in // 128), seed=2).abs()
    weight = float8.Float8Tensor(data, scales, (128, 128)).by_output()
    bias = randn(80, seed=4).bfloat16()
    x = randn(num_rows, num_in, dtype=torch.bfloat16, seed=3)
    linear = Float8Linear(weight, bias, float8_blocks.product, float8.round_rows)
    expected = Float8Twin(weight, bias, torch.bfloat16)(x)
    torch.testing.assert_close(linear(x), expected, rtol=2**-6, atol=0.5)


@pytest.mark.parametrize("num_in", [96, 256])
def test_the_triton_path_is_its_twin(num_in):
    """Two weights, merged: with one scale for each output, and with several."""
    numerics = Numerics(torch.bfloat16, DEVICE, packed=True, deterministic=False)
    weights = []
    for seed in (1, 2):
        data, _ = float8.round_rows(randn(32, num_in, seed=seed))
        scales = 0.1 + randn(1, -(-num_in // 128), seed=seed + 2).abs()
        weights.append(float8.Float8Tensor(data, scales, (128, 128)))
    made = []
    for ops in (TritonOps(), PlainOps()):
        forms = DeviceLinears(replace(numerics, fused=ops))
        assert {forms.form(weight) for weight in weights} == {"fp8 (e4m3)"}
        made.append(forms.linear(weights, None))
    x = randn(3, num_in, dtype=torch.bfloat16)
    torch.testing.assert_close(made[0](x), made[1](x), rtol=2**-6, atol=0.5)


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    """To the last bit, and nearly all to the bit."""
    step = 2**-3 if got.dtype == torch.float8_e4m3fn else 2**-7
    got, expected = got.float(), expected.float()
    torch.testing.assert_close(got, expected, rtol=step, atol=0.002)
    assert (got != expected).sum() <= 1 + got.numel() // 50
