"""Matrices of 4 or 8 bits as AWQ and GPTQ write them: codes packed into 32-bit words, a scale
and a zero point for every group of inputs.

A value is (code - zero) * scale. AWQ packs neighbouring outputs into a word, interleaved; GPTQ
packs neighbouring inputs, in order. Both keep zero points by output, packed as their own codes
are but along the outputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lmserve.errors import ModelError
from lmserve.weights.quant.base import GROUP_SIZE, Int4Codes, QuantisedTensor, chunk_rows


@dataclass(frozen=True, slots=True)
class Form:
    """How a file packs codes into words."""

    name: str  # for people
    bits: int
    by_input: bool  # a word holds codes of neighbouring inputs; else of neighbouring outputs
    order: tuple[int, ...] | None = None  # in which part of a word each lies; None: in order
    less_one: bool = False  # zero points are stored less one

    @property
    def per_word(self) -> int:
        return 32 // self.bits

    def unpack(self, words: Tensor, dim: int) -> Tensor:
        """The values in each word of a matrix, along a dimension of it: uint8."""
        order = self.order or range(self.per_word)
        shifts = torch.tensor([self.bits * part for part in order], dtype=torch.int32)
        shifts = shifts.to(words.device).view(-1, 1) if dim == 0 else shifts.to(words.device)
        values = (words.unsqueeze(dim + 1) >> shifts) & (2**self.bits - 1)
        return values.to(torch.uint8).flatten(dim, dim + 1)

    def unpack_zeros(self, words: Tensor) -> Tensor:
        # whole words: a zero point of 0 borrowed from its neighbour when one was taken from it
        ones = sum(1 << shift for shift in range(0, 32, self.bits)) if self.less_one else 0
        return self.unpack(words + ones, dim=1)


AWQ = Form("awq", bits=4, by_input=False, order=(0, 4, 1, 5, 2, 6, 3, 7))
GPTQ = Form("gptq", bits=4, by_input=True)


@dataclass(frozen=True, slots=True)
class Groups:
    """A matrix unpacked, its inputs in the order of their groups."""

    codes: Tensor  # uint8 (N, K)
    scales: Tensor  # float32 (N, K / group size), as are the zeros
    zeros: Tensor
    order: Tensor | None  # int64 (K): which input each column belongs to; None: as they come

    @property
    def group_size(self) -> int:
        return self.codes.shape[1] // self.scales.shape[1]

    def pieces(self) -> Iterator[Tensor]:
        """All of it in float32, some rows at a time, the inputs as they come."""
        back = None if self.order is None else self.order.argsort()
        step = chunk_rows(self.codes.shape[1])
        for start in range(0, len(self.codes), step):
            part = slice(start, start + step)
            codes = self.codes[part]
            codes = codes.view(len(codes), -1, self.group_size)
            values = (codes - self.zeros[part, :, None]) * self.scales[part, :, None]
            yield values.flatten(1) if back is None else values.flatten(1)[:, back]

    def dequantise(self, dtype: torch.dtype) -> Tensor:
        return torch.cat([piece.to(dtype) for piece in self.pieces()])


@dataclass(frozen=True, slots=True)
class GroupedTensor(QuantisedTensor):
    type: str
    shape: tuple[int, int]
    form: Form
    words: Tensor  # int32, inputs first
    zeros: Tensor  # int32 (groups, N / values of a word)
    scales: Tensor  # (groups, N)
    groups: Tensor | None  # int32 (K): of each input its group; None: in order

    @property
    def device(self) -> torch.device:
        return self.words.device

    def to(self, device: torch.device) -> GroupedTensor:
        groups = None if self.groups is None else self.groups.to(device)
        moved = {name: getattr(self, name).to(device) for name in ("words", "zeros", "scales")}
        return replace(self, groups=groups, **moved)

    def unpack(self) -> Groups:
        codes = self.form.unpack(self.words, dim=0 if self.form.by_input else 1)
        zeros = self.form.unpack_zeros(self.zeros)
        inputs = None if self.groups is None else self.groups.argsort(stable=True)
        return Groups(
            (codes if inputs is None else codes[inputs]).T.contiguous(),
            self.scales.T.float().contiguous(),
            zeros.T.float().contiguous(),
            inputs,
        )

    def pieces(self) -> Iterator[Tensor]:
        return self.unpack().pieces()

    def to_int4(self) -> Int4Codes | None:
        if self.form.bits != 4 or self.groups is not None:
            return None
        whole = self.unpack()
        times = whole.group_size // GROUP_SIZE
        scales = whole.scales.repeat_interleave(times, dim=1)
        zeros = whole.zeros.repeat_interleave(times, dim=1)
        return Int4Codes(whole.codes, scales, -zeros * scales)


def grouped_tensor(
    name: str, form: Form, words: Tensor, zeros: Tensor, scales: Tensor, groups: Tensor | None
) -> GroupedTensor:
    """Raises ModelError where the parts do not fit together or the groups are not supported."""
    down, across = words.shape
    shape = (across, down * form.per_word) if form.by_input else (across * form.per_word, down)
    (num_out, num_in), count = shape, len(scales)
    if scales.shape != (count, num_out) or zeros.shape != (count, num_out // form.per_word):
        raise ModelError(f"the scales and zero points of {name} do not fit; download it again")
    if num_in % (count * GROUP_SIZE):
        raise ModelError(
            f"{name} has a scale for every {num_in / count:g} inputs, which is not supported; "
            f"use a model quantised with a group size that is a multiple of {GROUP_SIZE}"
        )
    size = num_in // count
    bits = "" if form.bits == 4 else f" int{form.bits}"
    groups = _unless_in_order(name, groups, num_in, size)
    return GroupedTensor(f"{form.name}{bits} g{size}", shape, form, words, zeros, scales, groups)


def _unless_in_order(name: str, groups: Tensor | None, num_in: int, size: int) -> Tensor | None:
    ordered = torch.arange(num_in) // size
    if groups is None or torch.equal(groups.long(), ordered):
        return None
    if not torch.equal(groups.long().sort().values, ordered):
        raise ModelError(f"{name}.g_idx has groups of unequal sizes; quantise the model again")
    return groups
