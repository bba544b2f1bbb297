"""Directories quantised with AWQ, GPTQ and FP8: what is read is what their words say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.quantise import FORMATS, gptq_parts, quantiser, shuffled
from lmserve.errors import ModelError
from lmserve.weights.checkpoint import open_checkpoint
from lmserve.weights.quant.float8 import Float8Tensor, to_float8
from lmserve.weights.quant.grouped import AWQ, GPTQ, Form, GroupedTensor, grouped_tensor

WriteDirectory = Callable[..., Path]
NAME = "model.layers.1.mlp.down_proj"
GROUP = 32
# how far a value may be from what it was, in parts of its group's largest
STEPS = {"awq": 1 / 7, "gptq": 1 / 7, "gptq-int8": 1 / 120, "fp8": 1 / 15}


def quantised(write_directory: WriteDirectory, form: str) -> tuple[Path, dict[str, torch.Tensor]]:
    """A tiny directory, and its weights before."""
    config, quantise = quantiser(form, GROUP)
    path = write_directory(config={"quantization_config": config})
    before = load_file(path / "model.safetensors")
    tensors = {}
    for name, weight in before.items():
        module, _, last = name.rpartition(".")
        if "_proj" in name and last == "weight":
            tensors |= {f"{module}.{part}": each for part, each in quantise(weight).items()}
        else:
            tensors[name] = weight
    save({name: each.contiguous() for name, each in tensors.items()}, path)
    return path, before


def save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    save_file(tensors, path / "model.safetensors")


def configure(path: Path, **changes: Any) -> None:
    """Changes its quantization_config; None takes a field away."""
    config = json.loads((path / "config.json").read_text())
    given = config["quantization_config"] | changes
    config["quantization_config"] = {k: v for k, v in given.items() if v is not None}
    (path / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("form", FORMATS)
def test_every_form_is_read_under_the_names_of_the_weights(
    write_directory: WriteDirectory, form: str
) -> None:
    path, before = quantised(write_directory, form)
    checkpoint = open_checkpoint(path, path)
    assert sorted(checkpoint.names()) == sorted(before)
    step = STEPS.get(form) or STEPS[form.partition("-")[0]]
    for name, weight in before.items():
        read = checkpoint.get(name)
        if isinstance(read, torch.Tensor):
            assert "_proj" not in name
            assert torch.equal(read, weight)
            continue
        assert read.shape == weight.shape
        values = read.dequantise()
        largest = weight.abs().amax() if form == "fp8-tensor" else weight.abs().amax(1, True)
        assert ((values - weight).abs() <= step * largest).all()
        assert (values - weight).norm() < 0.8 * step * weight.norm()
        assert torch.equal(read.dequantise(torch.bfloat16), values.bfloat16())


def words(*values: int) -> torch.Tensor:
    return torch.tensor(values).where(torch.tensor(values) < 2**31, torch.tensor(values) - 2**32)


def test_awq_words_by_hand() -> None:
    """Outputs 0 … 7 lie in the parts 0, 4, 1, 5, 2, 6, 3, 7, the lowest first."""
    codes = words(0x75316420).int().expand(32, 1)
    zeros = words(0x00000001).int().view(1, 1)  # of output 0
    scales = torch.tensor([[1, 1, 1, 1, 1, 1, 1, 0.5]]).half()
    weight = grouped_tensor("w", AWQ, codes, zeros, scales, None)
    assert weight.type == "awq g32"
    expected = torch.tensor([-1, 1, 2, 3, 4, 5, 6, 3.5])
    assert torch.equal(weight.dequantise(), expected[:, None].expand(8, 32))


@pytest.mark.parametrize(
    ("less_one", "stored"), [(False, 0x76543210), (True, 0x76543210 - 0x11111111)]
)
def test_gptq_words_by_hand(less_one: bool, stored: int) -> None:
    """Inputs and outputs in order; a zero point of 0 borrows from the next when one is taken."""
    codes = words(0x76543210, 0xFEDCBA98, 0, 0xFFFFFFFF).int().view(4, 1).expand(4, 8)
    form = Form("gptq", bits=4, by_input=True, less_one=less_one)
    zeros = words(stored % 2**32).int().view(1, 1)
    weight = grouped_tensor("w", form, codes, zeros, torch.ones(1, 8).half(), None)
    row = torch.tensor([*range(16), *[0] * 8, *[15] * 8]).float()
    assert torch.equal(weight.dequantise(), row - torch.arange(8)[:, None])


def test_inputs_in_the_order_of_their_groups() -> None:
    weight = torch.randn(16, 96, generator=torch.Generator().manual_seed(0))
    order = shuffled(96)
    parts = gptq_parts(weight, GROUP, 4, False, False, order)
    read = grouped_tensor(
        "w",
        Form("gptq", 4, by_input=True, less_one=True),
        *(parts[part] for part in ("qweight", "qzeros", "scales", "g_idx")),
    )
    straight = gptq_parts(weight[:, order], GROUP, 4, False, False, torch.arange(96))
    other = grouped_tensor(
        "w",
        Form("gptq", 4, by_input=True, less_one=True),
        *(straight[part] for part in ("qweight", "qzeros", "scales", "g_idx")),
    )
    assert torch.equal(read.dequantise()[:, order], other.dequantise())
    assert read.to_int4() is None  # its groups are not of neighbours
    assert other.groups is None
    unpacked = read.unpack()
    assert unpacked.order is not None
    values = (unpacked.codes.view(16, 3, 32) - unpacked.zeros[..., None]) * unpacked.scales[
        ..., None
    ]
    assert torch.equal(values.flatten(1), read.dequantise()[:, unpacked.order])


@pytest.mark.parametrize("form", ["awq", "gptq"])
@pytest.mark.parametrize("size", [32, 96])
def test_the_same_values_in_groups_of_32(form: str, size: int) -> None:
    weight = torch.randn(16, 192, generator=torch.Generator().manual_seed(1))
    parts = quantiser(form, size)[1](weight)
    read = grouped_tensor(
        "w",
        AWQ if form == "awq" else Form("gptq", 4, by_input=True, less_one=True),
        parts["qweight"],
        parts["qzeros"],
        parts["scales"],
        None,
    )
    codes = read.to_int4()
    assert codes is not None
    values = codes.codes.view(16, -1, 32) * codes.scales[..., None] + codes.minima[..., None]
    torch.testing.assert_close(values.flatten(1), read.dequantise(), atol=1e-5, rtol=0)


def test_float8_with_one_scale_a_row() -> None:
    weight = torch.randn(200, 300, generator=torch.Generator().manual_seed(2))
    weight[3] = 0
    read = to_float8(weight)
    assert read.block == (1, 300)
    assert (read.dequantise() - weight).norm() < 0.03 * weight.norm()
    assert read.by_row().data is read.data
    blocks = quantiser("fp8-block", 0)[1](weight)
    several = Float8Tensor(blocks["weight"], blocks["weight_scale_inv"], (128, 128))
    anew = several.by_row()
    assert (anew.dequantise() - several.dequantise()).norm() < 0.03 * weight.norm()
    whole = Float8Tensor(read.data, torch.full((1, 1), 0.5), (200, 300))
    assert torch.equal(whole.by_row().dequantise(), read.data.float() * 0.5)


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        open_checkpoint(path, path)
    assert "\n" not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize(
    ("form", "changes", "said"),
    [
        ("awq", {"version": "gemv"}, "awq (version gemv), which lmserve does not read; give"),
        ("awq", {"backend": "llm-awq"}, "version llm-awq"),
        ("awq", {"zero_point": False}, "without zero points"),
        ("awq", {"bits": 3}, "3 bits"),
        ("gptq", {"bits": 2}, "gptq (2 bits)"),
        ("gptq", {"checkpoint_format": "marlin"}, "checkpoint_format marlin"),
        ("gptq", {"dynamic": {"+:.*up.*": {"bits": 8}}}, "dynamic rule '+:.*up.*'"),
        ("fp8-block", {"fmt": "e5m2"}, "not e4m3"),
        ("fp8-channel", {"format": "nvfp4-pack-quantized"}, "format nvfp4-pack-quantized"),
        ("fp8-channel", {"config_groups": {"g": {"weights": {"num_bits": 4}}}}, "4-bit weights"),
        ("awq", {"quant_method": "bitsandbytes"}, "quantised with bitsandbytes, which lmserve"),
        ("awq", {"quant_method": None}, "quantised with an unknown method"),
    ],
)
def test_what_cannot_be_read_is_refused(
    write_directory: WriteDirectory, form: str, changes: dict[str, Any], said: str
) -> None:
    path, _ = quantised(write_directory, form)
    configure(path, **changes)
    message = refusal(path)
    assert said in message
    assert "GGUF" in message


def test_modules_left_out_are_read_as_they_are(write_directory: WriteDirectory) -> None:
    path, before = quantised(write_directory, "gptq")
    configure(path, dynamic={f"-:{NAME}": {}})
    tensors = load_file(path / "model.safetensors")
    left = {name: each for name, each in tensors.items() if not name.startswith(NAME)}
    save(left | {f"{NAME}.weight": before[f"{NAME}.weight"]}, path)
    checkpoint = open_checkpoint(path, path)
    assert torch.equal(checkpoint.get(f"{NAME}.weight"), before[f"{NAME}.weight"])
    assert isinstance(checkpoint.get("model.layers.0.mlp.down_proj.weight"), GroupedTensor)


@pytest.mark.parametrize(
    ("form", "change", "said"),
    [
        ("awq", {f"{NAME}.qzeros": None}, f"no tensor {NAME}.qzeros"),
        ("awq", {f"{NAME}.scales": torch.ones(1, 64)}, f"scales and zero points of {NAME}"),
        ("gptq", {f"{NAME}.g_idx": torch.zeros(96).int()}, "groups of unequal sizes"),
        ("fp8-block", {f"{NAME}.weight_scale_inv": torch.ones(7, 7)}, f"the scales of {NAME}"),
        ("fp8-block", {f"{NAME}.weight_scale_inv": None}, f"{NAME}.weight has no scales"),
    ],
)
def test_parts_that_are_missing_or_do_not_fit(
    write_directory: WriteDirectory, form: str, change: dict[str, Any], said: str
) -> None:
    path, _ = quantised(write_directory, form)
    tensors = load_file(path / "model.safetensors") | change
    save({name: each for name, each in tensors.items() if each is not None}, path)
    with pytest.raises(ModelError, match=said):
        open_checkpoint(path, path).get(f"{NAME}.weight")


def test_a_group_size_that_no_kernel_knows() -> None:
    parts = quantiser("gptq", 16)[1](torch.ones(8, 64))
    with pytest.raises(ModelError, match="a scale for every 16 inputs.*multiple of 32"):
        grouped_tensor("w", GPTQ, parts["qweight"], parts["qzeros"], parts["scales"], None)
