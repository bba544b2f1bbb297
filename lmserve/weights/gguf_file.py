"""The header of a GGUF file: metadata and the table of tensors, nothing trusted.

The `gguf` package's reader makes several numpy arrays for every string, seconds for a vocabulary
of 50k; this one only walks over arrays and reads one when asked. No torch, no numpy: every read
is checked against the end of the file, and every fault is one ModelError.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from lmserve.errors import ModelError

MAGIC = b"GGUF"
MAX_DIMS = 4
MAX_NAME = 255
STRING, ARRAY = 8, 9
SCALARS = {  # GGUF's value types: code and size
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
U32, U64 = SCALARS[4], SCALARS[10]

#: ggml's number of a tensor type: its name, values in a block, bytes of a block
TENSOR_TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    name: str
    type: str
    shape: tuple[int, ...]  # torch's order: rows first
    offset: int  # in the file
    num_bytes: int


@dataclass(frozen=True, slots=True)
class ArrayRef:
    """An array in the metadata that was walked over, not read."""

    offset: int  # of its first item
    type: int
    count: int


class GGUFFile:
    """The parsed header. `metadata` holds scalars and strings; `array` reads an array."""

    def __init__(self, path: Path):
        self.path = path
        self.size = 0
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, TensorInfo] = {}
        try:
            with path.open("rb") as file:
                if file.read(4) != MAGIC:
                    raise ModelError(
                        f"{path} is not a GGUF file: it does not begin with 'GGUF'; "
                        "give a .gguf file or a directory of safetensors"
                    )
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
        self.size = len(self._data)
        try:
            self._parse()
        except (struct.error, OverflowError, UnicodeDecodeError) as error:
            raise self.damaged("it ends or is garbled inside its header") from error

    def damaged(self, what: str) -> ModelError:
        return ModelError(f"{self.path} is damaged: {what}; download it again")

    # --- what callers ask for ---------------------------------------------------------------

    def array(self, key: str) -> list[Any] | None:
        """The items of an array in the metadata; None where the key is absent."""
        ref = self.metadata.get(key)
        if ref is None:
            return None
        if not isinstance(ref, ArrayRef):
            raise self.damaged(f"{key} should be an array")
        if ref.type != STRING:
            code = SCALARS[ref.type].format[-1]
            return list(struct.unpack_from(f"<{ref.count}{code}", self._data, ref.offset))
        try:
            return self._strings(ref)
        except UnicodeDecodeError as error:
            raise self.damaged(f"{key} holds text that is not UTF-8") from error

    def header_hash(self) -> str:
        """Tells one file from another by its size and header: all but the weights."""
        digest = hashlib.sha256(str(self.size).encode())
        digest.update(memoryview(self._data)[: self.data_start])
        return digest.hexdigest()

    # --- parsing ----------------------------------------------------------------------------

    def _parse(self) -> None:
        (version,) = U32.unpack_from(self._data, 4)
        if version not in (2, 3):
            big_endian = version & 0xFFFF == 0  # a small number in the other byte order
            raise ModelError(
                f"{self.path} is {'a big-endian GGUF' if big_endian else f'GGUF version {version}'}"
                ", which lmserve does not read; convert the model again with a current llama.cpp "
                "(version 3, little-endian)"
            )
        num_tensors, num_keys = struct.unpack_from("<QQ", self._data, 8)
        if max(num_tensors, num_keys) > self.size // 12:  # each takes at least 12 bytes
            raise self.damaged("its counts exceed its size")
        position = 24
        for _ in range(num_keys):
            position = self._parse_key(position)
        table = []
        for _ in range(num_tensors):
            entry, position = self._parse_tensor(position)
            table.append(entry)
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment <= 0 or alignment % 8:
            raise self.damaged(f"its alignment is {alignment!r}, not a multiple of 8")
        self.data_start = -(-position // alignment) * alignment
        for name, type_id, shape, offset in table:
            if offset % alignment:
                raise self.damaged(f"tensor {name} is not aligned")
            self.tensors[name] = self._checked(name, type_id, shape, self.data_start + offset)

    def _parse_key(self, position: int) -> int:
        key, position = self._name(position)
        (kind,) = U32.unpack_from(self._data, position)
        position += 4
        if key in self.metadata:
            raise self.damaged(f"{key} is there twice")
        if kind == STRING:
            self.metadata[key], position = self._string(position)
        elif kind == ARRAY:
            item, count = struct.unpack_from("<IQ", self._data, position)
            self.metadata[key] = ArrayRef(position + 12, item, count)
            position = self._skip_array(key, self.metadata[key])
        elif kind in SCALARS:
            (self.metadata[key],) = SCALARS[kind].unpack_from(self._data, position)
            position += SCALARS[kind].size
        else:
            raise self.damaged(f"{key} has the unknown value type {kind}")
        return position

    def _parse_tensor(self, position: int) -> tuple[tuple[str, int, tuple[int, ...], int], int]:
        name, position = self._name(position)
        (num_dims,) = U32.unpack_from(self._data, position)
        if not 1 <= num_dims <= MAX_DIMS:
            raise self.damaged(f"tensor {name} has {num_dims} dimensions")
        dims = struct.unpack_from(f"<{num_dims}Q", self._data, position + 4)
        position += 4 + 8 * num_dims
        type_id, offset = struct.unpack_from("<IQ", self._data, position)
        return (name, type_id, dims[::-1], offset), position + 12

    def _checked(self, name: str, type_id: int, shape: tuple[int, ...], offset: int) -> TensorInfo:
        if name in self.tensors:
            raise self.damaged(f"tensor {name} is there twice")
        if type_id not in TENSOR_TYPES:
            raise ModelError(
                f"{self.path}: tensor {name} has ggml type {type_id}, which lmserve does not know; "
                "use a file quantised as Q4_0, Q4_1, Q4_K, Q5_K, Q6_K or Q8_0"
            )
        type_name, block, block_bytes = TENSOR_TYPES[type_id]
        if shape[-1] % block or not prod(shape):
            raise self.damaged(f"tensor {name} has the shape {list(shape)} as {type_name}")
        num_bytes = prod(shape) // block * block_bytes
        if offset + num_bytes > self.size:
            raise self.damaged(
                f"tensor {name} ends at byte {offset + num_bytes}, the file at {self.size}"
            )
        return TensorInfo(name, type_name, shape, offset, num_bytes)

    def _name(self, position: int) -> tuple[str, int]:
        """A key or a tensor's name: short and printable, for our messages repeat it."""
        name, position = self._string(position)
        if not name.isprintable() or len(name) > MAX_NAME:
            raise self.damaged("a name in its header is garbled")
        return name, position

    def _string(self, position: int) -> tuple[str, int]:
        (length,) = U64.unpack_from(self._data, position)
        position += 8
        if length > self.size - position:
            raise self.damaged("a text runs past its end")
        return self._data[position : position + length].decode(), position + length

    def _skip_array(self, key: str, ref: ArrayRef) -> int:
        """Where the array ends. Strings have to be walked: their lengths lie between them."""
        position, data, size = ref.offset, self._data, self.size
        if ref.type in SCALARS:
            position += ref.count * SCALARS[ref.type].size
        elif ref.type == STRING:
            if ref.count > (size - position) // 8:
                raise self.damaged(f"{key} runs past its end")
            length = U64.unpack_from
            for _ in range(ref.count):
                position += 8 + length(data, position)[0]
        else:
            raise ModelError(f"{self.path}: {key} is an array of type {ref.type}, not supported")
        if position > size:
            raise self.damaged(f"{key} runs past its end")
        return position

    def _strings(self, ref: ArrayRef) -> list[str]:
        position, data = ref.offset, self._data
        texts = []
        for _ in range(ref.count):
            end = position + 8 + U64.unpack_from(data, position)[0]
            texts.append(data[position + 8 : end].decode())
            position = end
        return texts
