"""Tensors streamed to their places: what the library's own load gives, and every fault told."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from lmserve.device.host import HostDevice
from lmserve.device.select import device_for
from lmserve.device.staging import HostStaging
from lmserve.errors import ModelError
from lmserve.weights.header import read_header
from lmserve.weights.stream import WeightStream

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
STAGING = HostDevice().staging


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def shards(folder: Path, count: int = 2) -> list[Path]:
    """Of every type, in shapes from nothing to larger than a buffer, some at odd offsets."""
    torch.manual_seed(0)
    files = []
    for number in range(count):
        tensors = {
            f"{number}.{dtype}.{shape}".removeprefix("torch."): torch.randn(shape).to(dtype)
            for dtype in DTYPES
            for shape in ((0, 4), (1, 1), (3, 7), (64, 33), (5, 1000))
        }
        tensors[f"{number}.odd"] = torch.randint(0, 255, (3,), dtype=torch.uint8)
        files.append(folder / f"model-{number}.safetensors")
        save_file(tensors, files[-1])
    return files


def streamed(
    files: list[Path],
    stream: WeightStream,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> dict[str, torch.Tensor]:
    """All tensors of the files, each in its own type or in one."""
    targets = {}
    for file in files:
        for name, stored in read_header(file).items():
            targets[name] = torch.empty(stored.shape, dtype=dtype or stored.dtype, device=device)
            stream.add(stored, targets[name])
    stream.run()
    return targets


def expected(files: list[Path]) -> dict[str, torch.Tensor]:
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name].view(torch.uint8), value.view(torch.uint8)), name


@pytest.mark.parametrize("num_readers", [1, 5])
@pytest.mark.parametrize("buffer_bytes", [64, 4096, 2**20])
def test_the_same_as_the_library_gives(tmp_path: Path, num_readers: int, buffer_bytes: int) -> None:
    files = shards(tmp_path)
    stream = WeightStream(STAGING, num_readers, buffer_bytes)
    assert_same(streamed(files, stream), expected(files))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_are_converted_as_torch_converts(tmp_path: Path, dtype: torch.dtype) -> None:
    files = shards(tmp_path, 1)
    found = streamed(files, WeightStream(STAGING, buffer_bytes=256), dtype)
    assert_same(found, {name: value.to(dtype) for name, value in expected(files).items()})


@settings(max_examples=20)
@given(
    shapes=st.lists(st.lists(st.integers(0, 9), max_size=3), min_size=1, max_size=6),
    buffer_bytes=st.sampled_from([8, 24, 4096]),
    num_readers=st.integers(1, 4),
)
def test_any_shapes(
    tmp_path_factory: pytest.TempPathFactory,
    shapes: list[list[int]],
    buffer_bytes: int,
    num_readers: int,
) -> None:
    file = tmp_path_factory.getbasetemp() / "shapes.safetensors"
    save_file({f"t{i}": torch.randn(shape) for i, shape in enumerate(shapes)}, file)
    found = streamed([file], WeightStream(STAGING, num_readers, buffer_bytes))
    assert_same(
        {name: each.view(-1) for name, each in found.items()},
        {name: each.view(-1) for name, each in load_file(file).items()},
    )


def test_parts_of_one_target(tmp_path: Path) -> None:
    parts = {name: torch.randn(rows, 16) for name, rows in (("q", 8), ("k", 4), ("v", 4))}
    file = tmp_path / "model.safetensors"
    save_file(parts, file)
    merged = torch.zeros(16, 16)
    stream, stored = WeightStream(STAGING, 3, 96), read_header(file)
    for name, place in zip(parts, merged.split([8, 4, 4]), strict=True):
        stream.add(stored[name], place)
    stream.run()
    assert torch.equal(merged, torch.cat(list(parts.values())))
    merged.zero_()
    stream.run()  # what is read is read once
    assert not merged.any()


def test_a_file_cut_short_since(tmp_path: Path) -> None:
    files = shards(tmp_path)
    stream = WeightStream(STAGING, 4, 512)
    for file in files:
        for stored in read_header(file).values():
            stream.add(stored, torch.empty(stored.shape, dtype=stored.dtype))
    os.truncate(files[1], files[1].stat().st_size - 5000)
    with pytest.raises(ModelError, match=r"model-1\.safetensors is damaged \(it ends before byte"):
        stream.run()


def test_reads_that_give_less_than_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, read = shards(tmp_path), os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: read(fd, [buffers[0][:100]], at))
    assert_same(streamed(files, WeightStream(STAGING, 3, 512)), expected(files))


def test_a_file_removed_since(tmp_path: Path) -> None:
    (file,) = shards(tmp_path, 1)
    stream = WeightStream(STAGING)
    for stored in read_header(file).values():
        stream.add(stored, torch.empty(stored.shape, dtype=stored.dtype))
    file.unlink()
    with pytest.raises(ModelError, match="cannot read .*No such file"):
        stream.run()


def test_a_disk_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = shards(tmp_path)
    read, left = os.preadv, iter(range(5))

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        if next(left, None) is None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    with pytest.raises(ModelError, match=r"is damaged \(Input/output error\); download it again"):
        streamed(files, WeightStream(STAGING, 3, 512))


def test_a_device_that_fails_ends_all_readers(tmp_path: Path) -> None:
    class Full(HostStaging):
        def send(self, num_bytes: int, dtype: torch.dtype, target: torch.Tensor) -> None:
            if target.numel() > 20:
                raise torch.OutOfMemoryError("the device is full")
            super().send(num_bytes, dtype, target)

    with pytest.raises(torch.OutOfMemoryError, match="the device is full"):
        streamed(shards(tmp_path), WeightStream(Full, 3, 512))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_to_a_gpu(tmp_path: Path, dtype: torch.dtype | None) -> None:
    """From pinned memory, on streams beside the one that the targets were made on."""
    files, device = shards(tmp_path), torch.device("cuda")
    stream = WeightStream(device_for(device).staging, 4, 4096)
    found = streamed(files, stream, dtype, device)
    wanted = expected(files)
    if dtype is not None:  # converted there, as torch converts there
        wanted = {name: value.to(device).to(dtype) for name, value in wanted.items()}
    assert_same(
        {name: value.cpu() for name, value in found.items()},
        {name: value.cpu() for name, value in wanted.items()},
    )


def test_memory_is_bounded(tmp_path: Path) -> None:
    """Two buffers a reader, however much there is to read."""
    made = []

    def staging(num_bytes: int) -> HostStaging:
        made.append(num_bytes)
        return HostStaging(num_bytes)

    files = shards(tmp_path)
    streamed(files, WeightStream(staging, 3, 512))
    assert made == [512] * 6


def test_a_buffer_is_not_written_before_it_is_free(tmp_path: Path) -> None:
    """A device that is slow: it copies when it is waited for, and only then."""
    filled: list[int] = []

    class Slow(HostStaging):
        def send(self, num_bytes: int, dtype: torch.dtype, target: torch.Tensor) -> None:
            assert self._sent is None, "the one before has not been waited for"
            super().send(num_bytes, dtype, target)
            filled.append(num_bytes)

    files = shards(tmp_path)
    assert_same(streamed(files, WeightStream(Slow, 2, 512)), expected(files))
    assert len(filled) > 4
