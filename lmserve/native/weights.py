"""Weights as the native kernels read them, packed from what a checkpoint holds.

Quantised weights stay integers: 4 bits where the file has a form of 4 bits (its values, but for
Q4_K's scales, which are rounded to float16), else 8 bits, rounded anew where the file's form is
neither. Dense ones stay dense.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lmserve.native.library import FORMS, GROUP_SIZE, INT4, INT8, Weight, address
from lmserve.weights.quant.base import LARGEST_INT8, Int4Codes, Int8Codes, QuantisedTensor

ALIGNMENT = 64
SMALLEST_SCALE = 2.0**-24  # of float16


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight and the memory it lies in."""

    form: int
    shape: tuple[int, int]  # outputs, inputs
    data: torch.Tensor  # uint8
    bias: torch.Tensor | None  # float32 (num_out)
    label: str  # for people: "int4 (q4_1)"

    def struct(self) -> Weight:
        return Weight(
            form=self.form,
            num_out=self.shape[0],
            num_in=self.shape[1],
            data=address(self.data),
            bias=address(self.bias),
        )


class Packer:
    """Packs for one library. Weights may be packed from several threads at once: what is slow
    here holds no lock."""

    def __init__(self, library: Any):
        self.library = library

    def pack(
        self,
        weight: torch.Tensor | QuantisedTensor,
        dtype: torch.dtype,  # of dense weights
        *,
        exact: bool = False,  # quantised weights become dense too
        bias: torch.Tensor | None = None,
    ) -> PackedWeight:
        if isinstance(weight, torch.Tensor):
            return self._dense(weight.to(dtype), bias)
        if exact:
            return self._dense(weight.dequantise(dtype), bias)
        kind = weight.type.lower()
        four = weight.to_int4()
        if four is not None:
            return self._int4(four, bias, kind)
        return self._int8(weight.to_int8() or rounded_to_int8(weight), bias, kind)

    def _dense(self, weight: torch.Tensor, bias: torch.Tensor | None) -> PackedWeight:
        (num_out, num_in), form = weight.shape, FORMS[weight.dtype]
        values, data = weight.contiguous(), self._memory(form, num_out, num_in)
        self.library.lms_pack_dense(form, num_out, num_in, address(values), address(data))
        label = str(weight.dtype).removeprefix("torch.")
        return PackedWeight(form, (num_out, num_in), data, bias, label)

    def _int4(self, weight: Int4Codes, bias: torch.Tensor | None, kind: str) -> PackedWeight:
        num_out, num_in = weight.codes.shape
        data = self._memory(INT4, num_out, num_in)
        parts = [each.contiguous() for each in (weight.codes, weight.scales, weight.minima)]
        self.library.lms_pack_int4(num_out, num_in, *map(address, parts), address(data))
        return PackedWeight(INT4, (num_out, num_in), data, bias, f"int4 ({kind})")

    def _int8(self, weight: Int8Codes, bias: torch.Tensor | None, kind: str) -> PackedWeight:
        num_out, num_in = weight.codes.shape
        data = self._memory(INT8, num_out, num_in)
        parts = [each.contiguous() for each in (weight.codes, weight.scales)]
        self.library.lms_pack_int8(num_out, num_in, *map(address, parts), address(data))
        return PackedWeight(INT8, (num_out, num_in), data, bias, f"int8 ({kind})")

    def _memory(self, form: int, num_out: int, num_in: int) -> torch.Tensor:
        num_bytes: int = self.library.lms_packed_bytes(form, num_out, num_in)
        memory = torch.empty(num_bytes + ALIGNMENT, dtype=torch.uint8)
        start = -memory.data_ptr() % ALIGNMENT
        return memory[start : start + num_bytes]


def rounded_to_int8(weight: QuantisedTensor) -> Int8Codes:
    """The nearest values in 8 bits; the float32 weight exists in pieces only."""
    rows, columns = weight.shape
    codes = torch.empty(rows, columns // GROUP_SIZE, GROUP_SIZE, dtype=torch.int8)
    scales = torch.empty(rows, columns // GROUP_SIZE)
    start = 0
    for piece in weight.pieces():
        place = slice(start, start := start + len(piece))
        groups = piece.view(len(piece), -1, GROUP_SIZE)
        # the kernels keep scales in float16: round the scale first, then by it
        scale = groups.abs().amax(-1).div_(LARGEST_INT8).half().float().clamp_min_(SMALLEST_SCALE)
        nearest = groups.div(scale.unsqueeze(-1)).round_().clamp_(-LARGEST_INT8, LARGEST_INT8)
        codes[place], scales[place] = nearest, scale
    return Int8Codes(codes.view(rows, columns), scales)
