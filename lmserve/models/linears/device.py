"""Which form a product has where graphs may capture it: on a GPU, or where its twins are run."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lmserve.models.linear import DenseLinear, Linear, Numerics
from lmserve.models.linears import int4
from lmserve.models.linears.float8 import (
    ALIGNMENT,
    Float8Linear,
    Float8Twin,
    Round,
    merged,
    product_on,
)
from lmserve.weights.quant.base import QuantisedTensor
from lmserve.weights.quant.float8 import Float8Tensor, round_rows
from lmserve.weights.quant.grouped import GroupedTensor, Groups

FLOAT8 = "fp8 (e4m3)"
BLOCK_INPUTS = 128  # of a block whose scales Triton's product takes


class DeviceLinears:
    """Of weights that lie on the device."""

    def __init__(self, numerics: Numerics):
        self.numerics = numerics
        self.device = numerics.device
        ops = numerics.fused
        self.twins = ops is not None and ops.name == "twins"
        self.triton = ops is not None and ops.name == "triton"

    def form(self, weight: torch.Tensor | QuantisedTensor) -> str | None:
        """For people; None where it is to be dense."""
        if not self.numerics.packed:
            return None
        if isinstance(weight, Float8Tensor) and self.multiplies_float8(weight.shape):
            return FLOAT8
        if isinstance(weight, GroupedTensor) and weight.form.bits == 4:
            if self.twins or (self.device.type == "cuda" and int4.fits(weight.shape)):
                return f"int4 ({weight.type})"
        return None

    def linear(self, weights: list[QuantisedTensor], bias: torch.Tensor | None) -> Linear | None:
        """The product with all of them, one below the other, all of one form; None where they
        cannot be one."""
        weights = [weight.to(self.device) for weight in weights]
        eights = [weight for weight in weights if isinstance(weight, Float8Tensor)]
        if eights:
            return self._float8(merged(eights), bias)
        groups = [weight.unpack() for weight in weights if isinstance(weight, GroupedTensor)]
        whole = joined(groups)
        return None if whole is None else self._int4(whole, bias)

    def _float8(self, weight: Float8Tensor, bias: torch.Tensor | None) -> Linear:
        if self.twins:
            return Float8Twin(weight, bias, self.numerics.dtype)
        product = product_on(self.device)
        if weight.scales.shape[1] > 1:
            if self.triton and weight.block[1] == BLOCK_INPUTS:
                from lmserve.fused import float8_blocks  # Triton

                product = float8_blocks.product
            else:
                weight = weight.by_row()
        assert product is not None
        return Float8Linear(weight, bias, product, self._round())

    def _int4(self, groups: Groups, bias: torch.Tensor | None) -> Linear:
        if self.twins:
            return DenseLinear(groups.dequantise(self.numerics.dtype), bias)
        return int4.DeviceInt4Linear(groups, bias, self._dequantise())

    def multiplies_float8(self, shape: Sequence[int]) -> bool:
        """Whether a weight, (out, in), can be."""
        if any(size % ALIGNMENT for size in shape):
            return False
        return self.twins or product_on(self.device) is not None

    def _round(self) -> Round:
        if not self.triton:
            return round_rows
        from lmserve.fused import float8  # Triton

        return float8.round_rows

    def _dequantise(self) -> int4.Dequantise:
        if not self.triton:
            return int4.dequantise_plainly
        from lmserve.fused.int4 import dequantise  # Triton

        return dequantise


def joined(groups: list[Groups]) -> Groups | None:
    """One below the other; None where their groups are not of the same inputs."""
    first = groups[0]
    for other in groups[1:]:
        if other.group_size != first.group_size or not _same(other.order, first.order):
            return None
    return Groups(
        torch.cat([each.codes for each in groups]),
        torch.cat([each.scales for each in groups]),
        torch.cat([each.zeros for each in groups]),
        first.order,
    )


def _same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)
