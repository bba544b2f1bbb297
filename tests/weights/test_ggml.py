"""ggml's block formats against `gguf.quants`, bit for bit, and their integer forms."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from lmserve.errors import ModelError
from lmserve.weights.gguf_file import TENSOR_TYPES
from lmserve.weights.quant import base, ggml
from lmserve.weights.quant.ggml import GGMLTensor, check_supported

ROWS, COLUMNS = 7, 512
#: where the float16 fields of a block are
HALVES = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}
PACKED = sorted(HALVES)
SIZES = {name: (values, size) for name, values, size in TENSOR_TYPES.values()}


def random_tensor(type_name: str, seed: int = 0) -> GGMLTensor:
    """Every bit random, but for scales that are finite."""
    random = np.random.default_rng(seed)
    values, size = SIZES[type_name]
    blocks = random.integers(0, 256, (ROWS * COLUMNS // values, size), dtype=np.uint8)
    for start in HALVES[type_name]:
        scales = random.uniform(-2, 2, len(blocks)).astype(np.float16)
        blocks[:, start : start + 2] = scales.view(np.uint8).reshape(-1, 2)
    return GGMLTensor(type_name, torch.from_numpy(blocks).view(ROWS, -1), (ROWS, COLUMNS))


def oracle(tensor: GGMLTensor) -> torch.Tensor:
    values = dequantize(tensor.data.numpy(), GGMLQuantizationType[tensor.type])
    return torch.from_numpy(values)


@pytest.mark.parametrize("type_name", PACKED)
@pytest.mark.parametrize("seed", range(3))
def test_dequantise_is_gguf_s(type_name: str, seed: int) -> None:
    tensor = random_tensor(type_name, seed)
    assert torch.equal(tensor.dequantise(torch.float32), oracle(tensor))
    assert torch.equal(tensor.dequantise(torch.bfloat16), oracle(tensor).bfloat16())


@pytest.mark.parametrize("type_name", ["F32", "F16", "BF16"])
def test_plain_floats(type_name: str) -> None:
    values = torch.randn(ROWS, COLUMNS, dtype=ggml.FLOATS[type_name])
    tensor = GGMLTensor(type_name, values.view(torch.uint8), (ROWS, COLUMNS))
    assert torch.equal(tensor.dequantise(torch.float32), values.float())


def test_types_without_a_fast_path_go_through_gguf() -> None:
    random = np.random.default_rng(0)
    values = random.standard_normal((ROWS, COLUMNS)).astype(np.float32)
    from gguf.quants import quantize

    packed = quantize(values, GGMLQuantizationType.TQ2_0)
    tensor = GGMLTensor("TQ2_0", torch.from_numpy(packed), (ROWS, COLUMNS))
    check_supported("TQ2_0")
    assert torch.equal(tensor.dequantise(torch.float32), oracle(tensor))


@pytest.mark.parametrize("type_name", [name for name in SIZES if name not in PACKED])
def test_types_nobody_unpacks_are_refused(type_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_supported(type_name)
    monkeypatch.setattr(gguf.quants, "dequantize", unpacks_nothing)  # an older gguf
    if type_name not in ggml.FLOATS:
        with pytest.raises(ModelError, match=f"type {type_name} are not supported"):
            check_supported(type_name)


def unpacks_nothing(*_: object) -> None:
    raise NotImplementedError


def test_long_tensors_are_unpacked_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "CHUNK_VALUES", 2 * COLUMNS)  # 7 rows: three chunks and a rest
    tensor = random_tensor("Q4_1")
    assert torch.equal(tensor.dequantise(), oracle(tensor))


@pytest.mark.parametrize("type_name", PACKED)
def test_rows(type_name: str) -> None:
    tensor, index = random_tensor(type_name), torch.tensor([6, 0, 0, 3])
    assert torch.equal(tensor.rows(index), oracle(tensor)[index])
    assert torch.equal(tensor.select_rows(index).dequantise(), oracle(tensor)[index])


@pytest.mark.parametrize("type_name", ["Q4_0", "Q4_1", "Q4_K"])
def test_int4_holds_the_same_values(type_name: str) -> None:
    tensor = random_tensor(type_name)
    weight = tensor.to_int4()
    assert weight is not None
    assert weight.codes.dtype == torch.uint8
    assert weight.codes.shape == (ROWS, COLUMNS)
    assert int(weight.codes.max()) == 15
    assert weight.scales.shape == weight.minima.shape == (ROWS, COLUMNS // 32)
    scales, minima = (each.repeat_interleave(32, 1) for each in (weight.scales, weight.minima))
    torch.testing.assert_close(weight.codes * scales + minima, oracle(tensor))


@pytest.mark.parametrize("type_name", ["Q5_0", "Q8_0"])
def test_int8_holds_the_same_values(type_name: str) -> None:
    tensor = random_tensor(type_name)
    if type_name == "Q8_0":
        tensor.data[tensor.data == 128] = 0  # -128, which no writer gives
    weight = tensor.to_int8()
    assert weight is not None
    assert weight.codes.dtype == torch.int8
    assert weight.scales.shape == (ROWS, COLUMNS // 32)
    assert torch.equal(weight.codes * weight.scales.repeat_interleave(32, 1), oracle(tensor))


@pytest.mark.parametrize("type_name", ["Q5_0", "Q8_0", "Q6_K"])
def test_other_types_have_no_int4_form(type_name: str) -> None:
    assert random_tensor(type_name).to_int4() is None


@pytest.mark.parametrize("type_name", ["Q4_1", "Q5_1", "Q6_K"])
def test_other_types_have_no_int8_form(type_name: str) -> None:
    assert random_tensor(type_name).to_int8() is None


def test_a_code_of_minus_128_has_no_int8_form() -> None:
    tensor = random_tensor("Q8_0")
    tensor.data[3, 40] = 128
    assert tensor.to_int8() is None
