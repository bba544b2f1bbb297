"""Products of 8-bit floats: weights with a scale for each output, activations rounded by row as
they come, so that a row's result is its own."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import TypeAlias

import torch
import torch.nn.functional as F

from lmserve.weights.quant.float8 import Float8Tensor, round_rows, to_float8

log = logging.getLogger(__name__)

Round: TypeAlias = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]  # as `round_rows`
# (T, in) and (out, in) of float8, each with its scales (rows, 1); what the product's type is
Product: TypeAlias = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.dtype], torch.Tensor
]
ALIGNMENT = 16  # what the kernels ask of inputs and outputs


class Float8Linear:
    def __init__(
        self, weight: Float8Tensor, bias: torch.Tensor | None, product: Product, round_: Round
    ):
        assert weight.block[0] == 1
        self.data = weight.data
        self.scales = weight.scales
        self.bias = bias
        self._product = product
        self._round = round_

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        rounded, scales = self._round(x)
        # on cuda one kernel gives bfloat16 alone
        dtype = torch.bfloat16 if x.is_cuda else x.dtype
        out = self._product(rounded, scales, self.data, self.scales, dtype).to(x.dtype)
        return out if self.bias is None else out.add_(self.bias)


class Float8Twin:
    """The same numbers multiplied as plain floats."""

    def __init__(self, weight: Float8Tensor, bias: torch.Tensor | None, dtype: torch.dtype):
        if weight.scales.shape[1] > 1:
            self.dtype, self.scales = torch.float32, weight.scales.new_ones(1, 1)
            self.weight = weight.dequantise()
        else:  # without their scales they are exact in bfloat16, their sums too large for float16
            self.dtype = torch.float32 if dtype == torch.float16 else dtype
            self.weight, self.scales = weight.data.to(self.dtype), weight.scales.view(1, -1)
        self.bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        rounded, scales = round_rows(x)
        out = F.linear(rounded.to(self.dtype), self.weight).float()
        out = out.mul_(scales).mul_(self.scales).to(x.dtype)
        return out if self.bias is None else out.add_(self.bias)


def scaled_inside(
    x: torch.Tensor,
    x_scales: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """By torch's kernel for scales by row."""
    return torch._scaled_mm(
        x, weight.t(), x_scales, scales.t(), out_dtype=dtype, use_fast_accum=x.is_cuda
    )


def scaled_after(
    x: torch.Tensor,
    x_scales: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """By the kernel that knows one scale, the others after it."""
    one = x_scales.new_ones(())
    out = torch._scaled_mm(x, weight.t(), one, one, out_dtype=dtype, use_fast_accum=x.is_cuda)
    return (out * x_scales * scales.t()).to(dtype)


@cache
def product_on(device: torch.device) -> Product | None:
    """The first that gives what it should in a small trial; None where none does."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (
        torch.randn(rows, 64, generator=generator).to(device, torch.bfloat16) for rows in (3, 32)
    )
    quantised = to_float8(weight)
    expected = Float8Twin(quantised, None, torch.float32)(x.float())
    for product in (scaled_inside, scaled_after):
        try:
            got = Float8Linear(quantised, None, product, round_rows)(x)
        except (RuntimeError, ValueError, NotImplementedError) as error:
            log.info("%s cannot run here: %s", product.__name__, str(error).split("\n")[0])
            continue
        if torch.allclose(got.float(), expected, rtol=0.02, atol=0.1):
            return product
        log.warning("%s gives wrong results here: it is not used", product.__name__)
    log.warning("products of 8-bit floats cannot run on %s: such weights become dense", device)
    return None


def merged(weights: list[Float8Tensor]) -> Float8Tensor:
    """One below the other, with scales for each output; of different blocks across rounded anew."""
    alike = len({weight.scales.shape[1] for weight in weights}) == 1
    parts = [weight.by_output() if alike else weight.by_row() for weight in weights]
    data = torch.cat([part.data.view(torch.uint8) for part in parts]).view(parts[0].data.dtype)
    return Float8Tensor(data, torch.cat([part.scales for part in parts]), parts[0].block)
