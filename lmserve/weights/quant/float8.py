"""Matrices of 8-bit floats (e4m3), with one scale for every block of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lmserve.errors import ModelError
from lmserve.weights.quant.base import QuantisedTensor, chunk_rows

FLOAT8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FLOAT8).max
SMALLEST_PEAK = 1e-12  # of a row, as it may be all zeros


class Float8Tensor(QuantisedTensor):
    """value * scale of its block. A block as large as the matrix: one scale in all; one row
    high and as wide: one for each output."""

    type = "fp8"

    def __init__(self, data: Tensor, scales: Tensor, block: tuple[int, int]):
        self.data = data  # (N, K)
        self.scales = scales  # float32 (blocks down, blocks across)
        self.block = block
        self.shape = (data.shape[0], data.shape[1])

    @property
    def device(self) -> torch.device:
        return self.data.device

    def to(self, device: torch.device) -> Float8Tensor:
        return Float8Tensor(self.data.to(device), self.scales.to(device), self.block)

    def pieces(self) -> Iterator[Tensor]:
        high, wide = self.block
        rows, columns = self.shape
        step = max(1, chunk_rows(columns) // high) * high
        for start in range(0, rows, step):
            values = self.data[start : start + step].float()
            scales = self.scales[start // high : -(-(start + step) // high)]
            down = scales.repeat_interleave(high, dim=0)[: len(values)]
            yield values * down.repeat_interleave(wide, dim=1)[:, :columns]

    def by_output(self) -> Float8Tensor:
        """The same with scales for each output, one for every block across."""
        scales = self.scales.repeat_interleave(self.block[0], dim=0)[: self.shape[0]]
        return Float8Tensor(self.data, scales, (1, self.block[1]))

    def by_row(self) -> Float8Tensor:
        """With one scale for each output: rounded anew where it has several."""
        if self.block[1] < self.shape[1]:
            return to_float8(torch.cat(list(self.pieces())))
        return self.by_output()


def to_float8(weight: Tensor) -> Float8Tensor:
    """The nearest values, with one scale for each output."""
    data, scales = round_rows(weight)
    return Float8Tensor(data, scales, (1, weight.shape[1]))


def round_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest values, and the scale of each row, float32 (rows, 1)."""
    values = x.float()
    scales = values.abs().amax(-1, keepdim=True).clamp_min(SMALLEST_PEAK) / LARGEST
    return (values / scales).clamp(-LARGEST, LARGEST).to(FLOAT8), scales


def float8_tensor(name: str, data: Tensor, scales: Tensor, block: list[int] | None) -> Float8Tensor:
    """Raises ModelError where the scales do not fit the data."""
    num_out, num_in = data.shape
    scales = scales.float()
    if block is None:
        high, wide = (1 if scales.numel() == num_out else num_out), num_in
        scales = scales.reshape(-1, 1)
    else:
        high, wide = block
    if scales.shape != (-(-num_out // high), -(-num_in // wide)):
        raise ModelError(f"the scales of {name} do not fit its weight; download it again")
    return Float8Tensor(data, scales, (high, wide))
