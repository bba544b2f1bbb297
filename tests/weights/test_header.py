"""Headers of safetensors: as the library reads them, and nothing of them trusted."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lmserve.errors import ModelError
from lmserve.weights.header import DTYPES, MAX_HEADER_BYTES, read_header

ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def written(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file = path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return file


def refusal(file: Path) -> str:
    with pytest.raises(ModelError) as caught:
        read_header(file)
    assert "\n" not in caught.value.message
    assert str(file) in caught.value.message
    assert caught.value.message.endswith("; download it again")
    return caught.value.message


def library_accepts(file: Path) -> bool:
    try:
        with safe_open(file, "pt", "cpu"):
            return True
    except SafetensorError:
        return False


def test_where_each_tensor_lies(tmp_path: Path) -> None:
    tensors = {
        name: torch.arange(-3, 9).to(dtype).view(3, 4)
        for name, dtype in DTYPES.items()
        if dtype is not torch.bool
    }
    tensors |= {"flags": torch.tensor([True, False, True]), "one": torch.tensor(7.0)}
    tensors |= {"nothing": torch.empty(0, 5), "deep": torch.randn(2, 1, 3, 1)}
    file = tmp_path / "model.safetensors"
    save_file(tensors, file, metadata={"format": "pt"})
    found, content = read_header(file), file.read_bytes()
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        stored = found[name]
        assert (stored.path, stored.dtype, stored.shape) == (file, tensor.dtype, tensor.shape)
        held = bytearray(content[stored.offset : stored.offset + stored.num_bytes])
        values = torch.frombuffer(held, dtype=torch.uint8) if held else torch.empty(0).byte()
        assert torch.equal(values.view(stored.dtype).view(stored.shape).byte(), tensor.byte())


def test_a_type_that_torch_does_not_have_is_left_out(tmp_path: Path) -> None:
    strange = {"dtype": "F4", "shape": [4], "data_offsets": [8, 10]}
    file = written(tmp_path, {"a": ENTRY, "b": strange}, bytes(10))
    assert list(read_header(file)) == ["a"]


@pytest.mark.parametrize(
    ("header", "num_bytes"),
    [
        ({"a": ENTRY}, 7),
        ({"a": ENTRY}, 9),
        ({"a": {**ENTRY, "shape": [3]}}, 8),
        ({"a": {**ENTRY, "shape": [-2, -1]}}, 8),
        ({"a": {**ENTRY, "shape": [2.0]}}, 8),
        ({"a": {**ENTRY, "shape": [True, 2]}}, 8),
        ({"a": {**ENTRY, "shape": [2**62, 2**62]}}, 8),
        ({"a": {**ENTRY, "data_offsets": [8, 0]}}, 8),
        ({"a": {**ENTRY, "data_offsets": [-8, 0]}}, 8),
        ({"a": {**ENTRY, "data_offsets": [4, 12]}}, 12),
        ({"a": {**ENTRY, "data_offsets": [0]}}, 8),
        ({"a": {**ENTRY, "data_offsets": [0, 2**70]}}, 8),
        ({"a": ENTRY, "b": ENTRY}, 8),
        ({"a": ENTRY, "b": {**ENTRY, "data_offsets": [4, 12]}}, 12),
        ({"a": ENTRY, "b": {**ENTRY, "data_offsets": [16, 24]}}, 24),
        ({"a": {"dtype": "F32"}}, 8),
        ({"a": 1}, 8),
        ([ENTRY], 8),
        (b"", 0),
        (b'{"a": ', 0),
        (b"\xff" * 20, 0),
        (b'{"\xff": 1}', 0),
        (b"[" * 100_000, 0),
        (b'{"a": ' * 50_000, 0),
    ],
)
def test_what_cannot_be_is_damaged(tmp_path: Path, header: Any, num_bytes: int) -> None:
    file = written(tmp_path, header, bytes(num_bytes))
    assert "is damaged" in refusal(file)
    assert not library_accepts(file)


@pytest.mark.parametrize("length", [0, 1, 10**6, MAX_HEADER_BYTES + 1, 2**63, 2**64 - 1])
def test_lengths_that_cannot_be(tmp_path: Path, length: int) -> None:
    assert "is damaged" in refusal(written(tmp_path, {"a": ENTRY}, bytes(8), length))


def test_files_that_end_at_once_or_are_not_there(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    for held in (b"", b"\x01", bytes(7), bytes(8)):
        file.write_bytes(held)
        assert "is damaged" in refusal(file)
    file.unlink()
    with pytest.raises(ModelError, match="is missing"):
        read_header(file)


def sizes() -> st.SearchStrategy[Any]:
    return st.one_of(st.integers(-4, 40), st.sampled_from([2**31, 2**62, 2**63, 2**64]), st.none())


def entries() -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "BF16", "U8", "F8_E4M3", "F4", "X", 3]),
            "shape": st.lists(sizes(), max_size=3),
            "data_offsets": st.lists(sizes(), min_size=1, max_size=3),
        }
    )


@given(
    header=st.dictionaries(st.sampled_from(["a", "b", "c", "__metadata__", ""]), entries()),
    num_bytes=st.integers(0, 64),
)
def test_what_is_accepted_lies_inside_the_file(
    tmp_path_factory: pytest.TempPathFactory, header: Any, num_bytes: int
) -> None:
    file = written(tmp_path_factory.getbasetemp(), header, bytes(num_bytes))
    check_sound(file)


@given(at=st.integers(0, 200), byte=st.integers(0, 255))
def test_a_changed_byte_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, at: int, byte: int
) -> None:
    base = tmp_path_factory.getbasetemp()
    second = {"dtype": "BF16", "shape": [3, 2], "data_offsets": [8, 20]}
    file = written(base, {"__metadata__": {"format": "pt"}, "a": ENTRY, "b": second}, bytes(20))
    content = bytearray(file.read_bytes())
    content[at % len(content)] = byte
    file.write_bytes(content)
    check_sound(file)


def check_sound(file: Path) -> None:
    """Refused in one line; or inside the file, apart from each other, and no surprise to the
    library."""
    try:
        found = read_header(file)
    except ModelError as error:
        assert "\n" not in error.message
        return
    end, size = 8, file.stat().st_size
    for stored in sorted(found.values(), key=lambda each: (each.offset, each.num_bytes)):
        assert end <= stored.offset <= stored.offset + stored.num_bytes <= size
        end = stored.offset + stored.num_bytes
    if library_accepts(file):
        with safe_open(file, "pt", "cpu") as opened:
            for name, stored in found.items():
                assert tuple(opened.get_slice(name).get_shape()) == stored.shape
