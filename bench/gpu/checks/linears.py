"""Products with quantised weights against their twins, which multiply dense weights of the same
numbers, at the sizes of real layers. What has no kernel here is left out."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from bench.gpu.options import Options
from bench.gpu.record import Record
from lmserve.models.linear import Linear
from lmserve.models.linears.float8 import Float8Linear, Float8Twin, Round, product_on
from lmserve.models.linears.int4 import Dequantise, DeviceInt4Linear, dequantise_plainly, fits
from lmserve.weights.quant.float8 import round_rows, to_float8
from lmserve.weights.quant.grouped import Groups

SIZES = ((6144, 4096), (4096, 4096), (4096, 12_288), (1536, 576), (24_576, 4096))
ROWS = (1, 7, 64, 65, 300)
TINY_SIZES, TINY_ROWS = ((64, 128),), (1, 5)
GROUP = 128
FP8_ERROR, INT4_ERROR = 0.01, 0.01  # of the norm: sums and results in bfloat16


def check(options: Options, record: Record) -> None:
    product = product_on(torch.device(options.device))
    record.figure("fp8", product.__name__ if product else "left out: no product runs here")
    record.figure("int4", "checked" if options.cuda else "left out: its kernel is on CUDA alone")
    for size in TINY_SIZES if options.tiny else SIZES:
        if product is not None:
            for name, round_ in rounds(options).items():
                with record.attempt(f"fp8 {size}, {name}"):
                    weight = to_float8(_randn(*size, device=options.device))
                    linear = Float8Linear(weight, None, product, round_)
                    twin = Float8Twin(weight, None, torch.bfloat16)
                    title = f"fp8 {size}, {name}"
                    _compare(title, linear, twin, size[1], FP8_ERROR, options, record)
        if options.cuda and fits(size):
            for name, dequantise in dequantisers().items():
                with record.attempt(f"int4 {size}, {name}"):
                    groups = random_groups(*size, options.device)
                    packed = DeviceInt4Linear(groups, None, dequantise)
                    title = f"int4 {size}, {name}"
                    _compare(title, packed, _dense(groups), size[1], INT4_ERROR, options, record)


def _dense(groups: Groups) -> Linear:
    weight = groups.dequantise(torch.float32)
    return lambda x: F.linear(x.float(), weight)


def rounds(options: Options) -> dict[str, Round]:
    from lmserve.fused import float8

    found: dict[str, Round] = {"torch": round_rows}
    return found | ({"triton": float8.round_rows} if options.cuda else {})


def dequantisers() -> dict[str, Dequantise]:
    from lmserve.fused.int4 import dequantise

    return {"torch": dequantise_plainly, "triton": dequantise}


def random_groups(num_out: int, num_in: int, device: str) -> Groups:
    size = min(GROUP, num_in)
    while num_in % size:
        size //= 2
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (num_out, num_in), generator=generator, dtype=torch.uint8)
    scales = torch.rand(num_out, num_in // size, generator=generator) * 0.01 + 0.001
    zeros = torch.randint(0, 16, scales.shape, generator=generator).float()
    order = torch.randperm(num_in, generator=generator)
    return Groups(*(each.to(device) for each in (codes, scales, zeros, order)))


def _compare(
    name: str, linear: Linear, twin: Linear, inputs: int, bound: float, of: Options, record: Record
) -> None:
    """Rows of very different sizes: each must be rounded by its own."""
    for rows in TINY_ROWS if of.tiny else ROWS:
        x = _randn(rows, inputs, device=of.device, seed=1)
        x *= torch.logspace(-2, 2, rows, device=of.device)[:, None].to(x.dtype)
        found, right = linear(x).float(), twin(x).float()
        errors = (found - right).norm(dim=-1) / right.norm(dim=-1)
        record.check(f"{name}, {rows} rows", float(errors.max()), bound)


def _randn(*size: int, device: str, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*size, generator=generator).to(device, torch.bfloat16)
