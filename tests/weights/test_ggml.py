"""ggml's block formats against `gguf.quants`, bit for bit, and torch's int4 form of them."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from lmserve.errors import ModelError
from lmserve.weights.gguf_file import TENSOR_TYPES
from lmserve.weights.quant import ggml
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
    monkeypatch.setattr(ggml, "CHUNK_VALUES", 2 * COLUMNS)  # 7 rows: three chunks and a rest
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
    assert weight.codes.dtype == torch.int32
    assert weight.codes.shape == (ROWS, COLUMNS)
    assert 0 <= int(weight.codes.min()) and int(weight.codes.max()) == 15
    assert weight.scales_and_zeros.shape == (COLUMNS // 32, ROWS, 2)
    scales, zeros = weight.scales_and_zeros.transpose(0, 1).repeat_interleave(32, 1).unbind(-1)
    torch.testing.assert_close((weight.codes - 8) * scales + zeros, oracle(tensor))


def test_int4_multiplies_in_torch_s_kernel() -> None:
    rows = 16  # the kernel wants a multiple of 16
    parts = [random_tensor("Q4_1", seed).data for seed in range(16)]
    tensor = GGMLTensor("Q4_1", torch.cat(parts), (16 * ROWS, COLUMNS))
    weight = tensor.to_int4()
    assert weight is not None
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(weight.codes, 1)
    x = torch.randn(rows, COLUMNS)
    got = torch.ops.aten._weight_int4pack_mm_for_cpu(
        x, packed, weight.group_size, weight.scales_and_zeros
    )
    torch.testing.assert_close(got, x @ oracle(tensor).T, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("type_name", ["Q5_0", "Q8_0", "Q6_K"])
def test_other_types_have_no_int4_form(type_name: str) -> None:
    assert random_tensor(type_name).to_int4() is None
