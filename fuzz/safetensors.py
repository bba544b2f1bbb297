"""The header of a safetensors file: a ModelError, or tensors that fill the file without overlaps.
What is let through the library takes as well."""

from __future__ import annotations

import json
import struct
from typing import Any

from fuzz import scratch
from lmserve.errors import ModelError
from lmserve.weights.header import read_header
from lmserve.weights.safetensors import open_shard

WORDS = (b'"dtype"', b'"shape"', b'"data_offsets"', b"__metadata__", b"BF16", b"[]", b"-1", b"1e9")


def seeds() -> list[bytes]:
    first = {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}
    second = {"dtype": "BF16", "shape": [2], "data_offsets": [8, 12]}
    return [
        written({"a": first, "b": second, "__metadata__": {"format": "pt"}}, 12),
        written({"a": {"dtype": "U8", "shape": [], "data_offsets": [0, 1]}}, 1),
        written({"a": {"dtype": "F4", "shape": [0], "data_offsets": [0, 0]}}, 0),
        written({}, 0),
    ]


def written(header: dict[str, Any], num_bytes: int) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(num_bytes)


def check(data: bytes) -> None:
    path = scratch.written("model.safetensors", data)
    try:
        stored = read_header(path)
    except ModelError:
        return
    for tensor in stored.values():
        assert 8 <= tensor.offset <= len(data) - tensor.num_bytes, tensor
    try:
        open_shard(path)
    except ModelError:
        pass
