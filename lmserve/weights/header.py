"""The header of a safetensors file: where the bytes of each tensor lie.

The library's own reader gives tensors, not their places. Nothing in a header is trusted: what it
says is held to the file's size, and the tensors follow each other without gaps or overlaps.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated

import msgspec
import torch

from lmserve.errors import ModelError

LENGTH = struct.Struct("<Q")  # of the header, at the beginning of the file
MAX_HEADER_BYTES = 100_000_000  # the format's own limit
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}

Size = Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class Entry(msgspec.Struct, frozen=True):
    """A tensor as a header describes it."""

    dtype: str
    shape: Annotated[list[Size], msgspec.Meta(max_length=64)]  # torch's limit
    data_offsets: tuple[Size, Size]


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies."""

    path: Path
    offset: int  # in the file
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file; those of a type that torch does not have are left out.

    Raises ModelError when the file cannot be read, or is not what it should be.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            start = LENGTH.size + _header_bytes(path, file.read(LENGTH.size), size)
            text = file.read(start - LENGTH.size)
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing; download the model again") from error
    except OSError as error:
        raise damaged(path, error.strerror or error) from error
    entries = _entries(path, text)
    _check_layout(path, entries, size - start)
    return {
        name: StoredTensor(path, start + entry.data_offsets[0], dtype, tuple(entry.shape))
        for name, entry in entries.items()
        if (dtype := DTYPES.get(entry.dtype)) is not None
    }


def damaged(path: Path, reason: object) -> ModelError:
    text = " ".join(str(reason).split())
    return ModelError(f"{path} is damaged ({text}); download it again")


def _header_bytes(path: Path, beginning: bytes, size: int) -> int:
    if len(beginning) < LENGTH.size:
        raise damaged(path, "it ends inside its header")
    num_bytes: int = LENGTH.unpack(beginning)[0]
    if num_bytes > min(MAX_HEADER_BYTES, size - LENGTH.size):
        raise damaged(path, "its header is longer than it can be")
    return num_bytes


def _entries(path: Path, text: bytes) -> dict[str, Entry]:
    try:
        values = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        values.pop("__metadata__", None)
        decoder = msgspec.json.Decoder(Entry)
        return {name: decoder.decode(value) for name, value in values.items()}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise damaged(path, f"its header: {error}") from error


def _check_layout(path: Path, entries: dict[str, Entry], num_bytes: int) -> None:
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        begin, next_begin = entry.data_offsets
        if begin != end or next_begin < begin:
            raise damaged(path, f"tensor {name} does not follow the one before it")
        dtype = DTYPES.get(entry.dtype)
        if dtype is not None and prod(entry.shape) * dtype.itemsize != next_begin - begin:
            raise damaged(path, f"tensor {name} has another size than its shape")
        end = next_begin
    if end != num_bytes:
        raise damaged(path, f"its tensors take {end} bytes, it holds {num_bytes}")
