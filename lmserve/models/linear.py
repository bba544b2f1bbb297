"""Products with weights, in the form that suits the weight, the device and the row count.

Dense: `F.linear`. Int4: quantised GGUF blocks of 4 bits stay packed; few rows run torch's
int4 kernel, many rows a dense product with the weight dequantised for that one call.

Deterministic: one product per weight for all row counts, so that a row's bits depend on
nothing but the row. The int4 kernel has that property; dense products run in tiles of a
fixed number of rows (a BLAS picks other kernels for other shapes).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from lmserve.weights.quant.ggml import GGMLTensor

Linear: TypeAlias = Callable[[torch.Tensor], torch.Tensor]  # (T, in) to (T, out)

# Beyond this many rows it is faster to dequantise the weight and take a dense product
# (measured on one AVX2 core, 576 x 1536: 3.0 against 3.6 ms at 64 rows, 6.0 against 4.6 at 128).
INT4_MAX_ROWS = 64
DETERMINISTIC_ROWS = 16  # rows of a dense product, when deterministic
INT4_ALIGNMENT = 32  # what the kernel asks of the number of outputs


@dataclass(frozen=True, slots=True)
class Numerics:
    """How a model computes."""

    dtype: torch.dtype
    device: torch.device
    packed: bool  # 4-bit weights may stay packed
    deterministic: bool


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


class Int4Linear:
    """Groups of 4-bit codes with a scale and a zero point each.

    The kernel is fast with bfloat16 activations only; others are converted there and back.
    """

    def __init__(
        self,
        parts: Sequence[GGMLTensor],
        packed: torch.Tensor,
        scales: torch.Tensor,  # (in / group, out, 2), bfloat16
        group_size: int,
        bias: torch.Tensor | None,
        max_rows: int | None,
    ):
        self.parts = parts
        self.packed = packed
        self.scales = scales
        self.group_size = group_size
        self.bias = bias
        self.max_rows = max_rows  # None: for any number of rows

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self.max_rows is not None and x.shape[0] > self.max_rows:
            parts = [part.dequantise(x.dtype) for part in self.parts]
            weight = parts[0] if len(parts) == 1 else torch.cat(parts)
            return F.linear(x, weight, self.bias)
        out: torch.Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            x.to(torch.bfloat16), self.packed, self.group_size, self.scales
        ).to(x.dtype)
        return out if self.bias is None else out.add_(self.bias)


class SplitLinear:
    """Merged projections whose parts have different forms: side by side."""

    def __init__(self, parts: Sequence[Linear]):
        self.parts = parts

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([part(x) for part in self.parts], dim=-1)
