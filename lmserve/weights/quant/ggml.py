"""Tensors in ggml's block formats: kept packed, unpacked with vectorised torch when needed.

A row is a run of blocks; rows are independent, so rows may be gathered, reordered and joined
without unpacking anything. The layouts are ggml's; `gguf.quants` is the oracle in the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lmserve.errors import ModelError
from lmserve.weights.gguf_file import TENSOR_TYPES
from lmserve.weights.quant.base import (
    LARGEST_INT8,
    Int4Codes,
    Int8Codes,
    QuantisedTensor,
    chunk_rows,
)

BLOCK_BYTES = {name: size for name, _, size in TENSOR_TYPES.values()}
FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class GGMLTensor(QuantisedTensor):
    """A matrix in blocks. `data` may be a view on the mapped file."""

    type: str  # ggml's name: "Q4_1"
    data: Tensor  # uint8 (rows, row_bytes)
    shape: tuple[int, int]  # (rows, columns) unpacked

    @property
    def device(self) -> torch.device:
        return self.data.device

    def to(self, device: torch.device) -> GGMLTensor:
        return GGMLTensor(self.type, self.data.to(device), self.shape)

    def pieces(self) -> Iterator[Tensor]:
        rows, columns = self.shape
        step = chunk_rows(columns)
        for start in range(0, rows, step):
            yield unpack(self.type, self.data[start : start + step]).view(-1, columns)

    def rows(self, index: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        picked = self.data.index_select(0, index)
        return GGMLTensor(self.type, picked, (len(index), self.shape[1])).dequantise(dtype)

    def select_rows(self, index: Tensor) -> GGMLTensor:
        """The rows in another order, still packed."""
        return GGMLTensor(self.type, self.data.index_select(0, index), (len(index), self.shape[1]))

    def to_int4(self) -> Int4Codes | None:
        split = INT4.get(self.type)
        if split is None:
            return None
        rows, columns = self.shape
        codes, scales, minima = split(self._blocks())
        return Int4Codes(codes.view(rows, columns), scales.view(rows, -1), minima.view(rows, -1))

    def to_int8(self) -> Int8Codes | None:
        split = INT8.get(self.type)
        if split is None:
            return None
        rows, columns = self.shape
        codes, scales = split(self._blocks())
        if codes.min() < -LARGEST_INT8:  # a file may hold it, though nobody writes it
            return None
        return Int8Codes(codes.view(rows, columns), scales.view(rows, -1))

    def _blocks(self) -> Tensor:
        return self.data.reshape(-1, BLOCK_BYTES[self.type])


def unpack(type_name: str, data: Tensor) -> Tensor:
    """Blocks to float32: (blocks, values in a block), bit for bit what `gguf.quants` gives."""
    if type_name in FLOATS:
        return data.contiguous().view(FLOATS[type_name]).float()
    if type_name in UNPACK:
        return UNPACK[type_name](data.reshape(-1, BLOCK_BYTES[type_name]))
    return _unpack_slowly(type_name, data)


def check_supported(type_name: str) -> None:
    """Raises ModelError for a type that nothing here can unpack."""
    if type_name in FLOATS or type_name in UNPACK:
        return
    _unpack_slowly(type_name, torch.zeros(1, BLOCK_BYTES[type_name], dtype=torch.uint8))


def _unpack_slowly(type_name: str, data: Tensor) -> Tensor:
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    try:
        values = dequantize(data.contiguous().numpy(), GGMLQuantizationType[type_name])
    except (NotImplementedError, KeyError) as error:
        raise ModelError(
            f"tensors of type {type_name} are not supported; "
            "use a file quantised as Q4_0, Q4_1, Q4_K, Q5_K, Q6_K or Q8_0"
        ) from error
    return torch.from_numpy(values)


# --- pieces of a block: `b` is uint8 (blocks, bytes) ----------------------------------------


def _half(b: Tensor, start: int) -> Tensor:
    """The float16 at this even byte, as float32 (blocks, 1)."""
    return b.view(torch.float16)[:, start // 2, None].float()


def _nibbles(b: Tensor, run: int) -> Tensor:
    """Runs of bytes: the low nibbles of a run, then its high ones. uint8 (blocks, 2 x bytes)."""
    runs = b.reshape(len(b), -1, 1, run)
    return torch.cat((runs & 15, runs >> 4), dim=2).flatten(1)


def _bits(b: Tensor, width: int, run: int) -> Tensor:
    """Runs of bytes: the lowest `width` bits of a run, then the next, … uint8."""
    runs = b.reshape(len(b), -1, 1, run)
    shifts = range(0, 8, width)
    return torch.cat([(runs >> s) & (2**width - 1) for s in shifts], dim=2).flatten(1)


def _fifth_bits(b: Tensor) -> Tensor:
    """Bit i of 4 bytes belongs to value i: 0 or 16. uint8 (blocks, 32)."""
    shifts = torch.arange(8, dtype=torch.uint8)
    return ((b.unsqueeze(-1) >> shifts) & 1).flatten(1) << 4


def _scales_k(b: Tensor) -> tuple[Tensor, Tensor]:
    """The eight 6-bit scales and minima that Q4_K and Q5_K pack into 12 bytes."""
    low, mid, high = b[:, 0:4], b[:, 4:8], b[:, 8:12]
    scales = torch.cat((low & 63, (high & 15) | ((low >> 2) & 48)), dim=1)
    minima = torch.cat((mid & 63, (high >> 4) | ((mid >> 2) & 48)), dim=1)
    return scales.float(), minima.float()


def _grouped(codes: Tensor, scales: Tensor, minima: Tensor) -> Tensor:
    """code * scale - minimum, for eight groups of 32."""
    values = codes.view(len(codes), 8, 32).float() * scales.unsqueeze(-1)
    return (values - minima.unsqueeze(-1)).flatten(1)


# --- whole blocks ---------------------------------------------------------------------------


def _q4_0(b: Tensor) -> Tensor:
    return _half(b, 0) * (_nibbles(b[:, 2:], 16).float() - 8)


def _q4_1(b: Tensor) -> Tensor:
    return _half(b, 0) * _nibbles(b[:, 4:], 16).float() + _half(b, 2)


def _q5_0(b: Tensor) -> Tensor:
    codes = _nibbles(b[:, 6:], 16) | _fifth_bits(b[:, 2:6])
    return _half(b, 0) * (codes.float() - 16)


def _q5_1(b: Tensor) -> Tensor:
    codes = _nibbles(b[:, 8:], 16) | _fifth_bits(b[:, 4:8])
    return _half(b, 0) * codes.float() + _half(b, 2)


def _q8_0(b: Tensor) -> Tensor:
    return b[:, 2:].contiguous().view(torch.int8).float() * _half(b, 0)


def _q4_k(b: Tensor) -> Tensor:
    scales, minima = _scales_k(b[:, 4:16])
    return _grouped(_nibbles(b[:, 16:], 32), _half(b, 0) * scales, _half(b, 2) * minima)


def _q5_k(b: Tensor) -> Tensor:
    scales, minima = _scales_k(b[:, 4:16])
    codes = _nibbles(b[:, 48:], 32) | (_bits(b[:, 16:48], 1, 32) << 4)
    return _grouped(codes, _half(b, 0) * scales, _half(b, 2) * minima)


def _q6_k(b: Tensor) -> Tensor:
    codes = _nibbles(b[:, :128], 64) | (_bits(b[:, 128:192], 2, 32) << 4)
    scales = _half(b, 208) * b[:, 192:208].contiguous().view(torch.int8).float()
    values = codes.view(len(b), 16, 16).float() - 32
    return (scales.unsqueeze(-1) * values).flatten(1)


UNPACK: dict[str, Callable[[Tensor], Tensor]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}


# --- integer codes: code * scale + minimum, code * scale --------------------------------------


def _int4_q4_0(b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scales = _half(b, 0)
    return _nibbles(b[:, 2:], 16), scales, -8 * scales


def _int4_q4_1(b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _nibbles(b[:, 4:], 16), _half(b, 0), _half(b, 2)


def _int4_q4_k(b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scales, minima = _scales_k(b[:, 4:16])
    return _nibbles(b[:, 16:], 32), _half(b, 0) * scales, -_half(b, 2) * minima


def _int8_q5_0(b: Tensor) -> tuple[Tensor, Tensor]:
    codes = _nibbles(b[:, 6:], 16) | _fifth_bits(b[:, 2:6])
    return codes.view(torch.int8) - 16, _half(b, 0)


def _int8_q8_0(b: Tensor) -> tuple[Tensor, Tensor]:
    return b[:, 2:].contiguous().view(torch.int8), _half(b, 0)


INT4: dict[str, Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]] = {
    "Q4_0": _int4_q4_0,
    "Q4_1": _int4_q4_1,
    "Q4_K": _int4_q4_k,
}
INT8: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "Q5_0": _int8_q5_0,
    "Q8_0": _int8_q8_0,
}
