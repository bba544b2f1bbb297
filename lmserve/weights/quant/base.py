"""What every quantised matrix offers, whatever its format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK_VALUES = 1 << 18  # unpacked at a time: the float32 intermediates stay in the cache
GROUP_SIZE = 32  # of the integer forms below
LARGEST_INT8 = 127


@dataclass(frozen=True, slots=True)
class Int4Codes:
    """code * scale + minimum, one scale and minimum for every 32 values of a row."""

    codes: Tensor  # uint8 (N, K), 0 … 15
    scales: Tensor  # float32 (N, K / 32), as are the minima
    minima: Tensor


@dataclass(frozen=True, slots=True)
class Int8Codes:
    """code * scale, one scale for every 32 values of a row."""

    codes: Tensor  # int8 (N, K), -127 … 127
    scales: Tensor  # float32 (N, K / 32)


class QuantisedTensor(ABC):
    """A matrix, (outputs, inputs), that takes fewer bits than floats. Tensors inside may be views
    on the mapped file."""

    type: str  # for people: "Q4_1", "awq g128"
    shape: tuple[int, int]

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where it lies, and where it is unpacked."""

    @abstractmethod
    def to(self, device: torch.device) -> QuantisedTensor:
        """The same on a device, still packed."""

    @abstractmethod
    def pieces(self) -> Iterator[Tensor]:
        """All of it in float32, some rows at a time."""

    def dequantise(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """All of it, (outputs, inputs)."""
        out = torch.empty(self.shape, dtype=dtype, device=self.device)
        start = 0
        for piece in self.pieces():
            out[start : (start := start + len(piece))] = piece
        return out

    def rows(self, index: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Some rows, in the order of `index` (1-D): what an embedding looks up."""
        return self.dequantise(dtype).index_select(0, index)

    def to_int4(self) -> Int4Codes | None:
        """The same values in 4 bits; None where they have no such form."""
        return None

    def to_int8(self) -> Int8Codes | None:
        """The same values in 8 bits; None where they have no such form."""
        return None


def chunk_rows(num_columns: int) -> int:
    """Rows of a piece."""
    return max(1, CHUNK_VALUES // num_columns)
