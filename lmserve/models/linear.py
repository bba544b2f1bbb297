"""Products with weights, in the form that suits the weight, the device and the row count.

Dense: `F.linear`. Int8: both sides bytes, activations quantised as they come. Int4: 4-bit
weights stay as they are; the fastest for few rows.

Deterministic: one product per weight for all row counts, so that a row's bits depend on
nothing but the row. The integer products have that property; dense ones run in tiles of a
fixed number of rows (a BLAS picks other kernels for other shapes).
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F

from lmserve.attention.elementwise import softcap_
from lmserve.fused.base import Ops
from lmserve.native.library import Kernels

Linear: TypeAlias = Callable[[torch.Tensor], torch.Tensor]  # (T, in) to (T, out)

# Beyond this many rows int8 is faster. Milliseconds of a whole step of a 135 M model, int8
# against int4, one AVX2 core: 35 and 31 at one row, 46 and 42 at 4, 66 and 73 at 8.
INT4_MAX_ROWS = 4
WEIGHT_LEVELS = 127
# A byte of activations holds 7 bits: without VNNI two products of 8 overflow their 16-bit sum.
LEVELS = 63
ZERO_POINT = 64
INT8_ROWS = 128  # in one product: bounds what it allocates
SMALLEST = 1e-30  # of a row's peak, as a row may be all zeros
DETERMINISTIC_ROWS = 16  # rows of a dense product, when deterministic
INT4_ALIGNMENT = 32  # what the kernel asks of the number of outputs
_quiet = threading.Lock()  # warnings are the whole process's, and layers load in threads


@dataclass(frozen=True, slots=True)
class Numerics:
    """How a model computes."""

    dtype: torch.dtype  # of dense weights; with torch's kernels also of activations and KV
    device: torch.device
    packed: bool  # quantised weights may be multiplied as they are, less exactly
    deterministic: bool
    kernels: Kernels | None = None  # None: torch's
    native_kv: torch.dtype = torch.float32  # of the KV cache, with kernels of our own
    fused: Ops | None = None  # between products, on the device path; None: torch's, one by one
    quantization: str = "none"  # fp8: weights are rounded as they are loaded
    rounded_kv: torch.dtype | None = None  # of the KV cache on the device path; None: as dtype

    @property
    def on_device(self) -> bool:
        """Products run where a graph may capture them: none may look at the host."""
        return self.fused is not None or self.device.type != "cpu"

    @property
    def kv_dtype(self) -> torch.dtype:
        if self.kernels is not None:
            return self.native_kv
        return self.dtype if self.rounded_kv is None else self.rounded_kv

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")


class DenseLinear:
    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None):
        self.weight = weight
        self.bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.bias)


class TiledLinear(DenseLinear):
    """Dense, in tiles of a fixed number of rows."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        num_rows = x.shape[0]
        x = F.pad(x, (0, 0, 0, -num_rows % DETERMINISTIC_ROWS))
        out = x.new_empty(x.shape[0], self.weight.shape[0])
        tiles = zip(x.split(DETERMINISTIC_ROWS), out.split(DETERMINISTIC_ROWS), strict=True)
        for rows, result in tiles:
            result.copy_(F.linear(rows, self.weight, self.bias))
        return out[:num_rows]


class Int8Linear:
    """Bytes by bytes: one scale for each output of the weight and for each row of activations,
    so that a row's result is its own.

    One byte an activation is too coarse (a few columns are far larger than all others), so a
    row is two rows of the product: rounded to a byte, and what the rounding left, to a byte.
    """

    def __init__(self, codes: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None):
        self.num_out = len(codes)
        self.packed = _pack_int8(codes, scales)
        self.bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        out = x.new_empty(x.shape[0], self.num_out)
        for rows, result in zip(x.split(INT8_ROWS), out.split(INT8_ROWS), strict=True):
            self._product(rows, result)
        return out if self.bias is None else out.add_(self.bias)

    def _product(self, x: torch.Tensor, out: torch.Tensor) -> None:
        num_rows, width = x.shape
        unit = x.abs().amax(-1, keepdim=True).float()  # the norm of this name is 15 times slower
        unit = unit.mul_(1 / LEVELS).clamp_min_(SMALLEST)
        both = torch.empty(2, num_rows, width)
        coarse, fine = both.unbind()
        torch.div(x, unit, out=coarse)
        torch.frac(coarse, out=fine)
        coarse.sub_(fine)
        fine.mul_(LEVELS)
        product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            both.view(-1, width), 1.0, ZERO_POINT, self.packed
        )
        coarse, fine = product.view(2, num_rows, -1).unbind()
        torch.mul(coarse.add_(fine, alpha=1 / LEVELS), unit, out=out)


class Int4Linear:
    """Groups of 4-bit codes with a scale and a zero point each.

    The kernel is fast with bfloat16 activations only; others are converted there and back.
    """

    def __init__(
        self,
        packed: torch.Tensor,
        scales: torch.Tensor,  # (in / group, out, 2), bfloat16
        group_size: int,
        bias: torch.Tensor | None,
    ):
        self.packed = packed
        self.scales = scales
        self.group_size = group_size
        self.bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            x.to(torch.bfloat16), self.packed, self.group_size, self.scales
        ).to(x.dtype)
        return out if self.bias is None else out.add_(self.bias)


class RowCountLinear:
    """Two forms of one weight."""

    def __init__(self, few: Int4Linear, many: Int8Linear):
        self.few = few
        self.many = many

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return (self.few if x.shape[0] <= INT4_MAX_ROWS else self.many)(x)


class SplitLinear:
    """Merged projections whose parts have different forms: side by side."""

    def __init__(self, parts: Sequence[Linear]):
        self.parts = parts

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([part(x) for part in self.parts], dim=-1)


class CappedLinear:
    """A product whose results lie between minus and plus `cap`."""

    def __init__(self, linear: Linear, cap: float, deterministic: bool):
        self.linear = linear
        self.cap = cap
        self.deterministic = deterministic

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return softcap_(self.linear(x), self.cap, self.deterministic)


def int8_supported() -> bool:
    return "fbgemm" in torch.backends.quantized.supported_engines


def _pack_int8(codes: torch.Tensor, scales: torch.Tensor) -> torch.ScriptObject:
    """As fbgemm wants it. (The default engine may choose oneDNN, which lacks our product.)"""
    zeros = torch.zeros(len(scales), dtype=torch.int64)
    torch.backends.quantized.engine = "fbgemm"
    with _quiet, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.quantize_per_tensor", UserWarning)
        quantised = torch._make_per_channel_quantized_tensor(codes, scales.double(), zeros, 0)
    packed: torch.ScriptObject = torch.ops.quantized.linear_prepack(quantised, None)
    return packed
