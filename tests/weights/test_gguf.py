"""GGUF files: read whole, renamed and reordered as Hugging Face has them; never trusted."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Q
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmserve.errors import ModelError
from lmserve.weights.checkpoint import open_checkpoint
from lmserve.weights.gguf import llama3_scaling
from lmserve.weights.gguf_file import ArrayRef, GGUFFile
from lmserve.weights.quant.ggml import GGMLTensor

from .conftest import HEAD_DIM, HEADS, HIDDEN, KV_HEADS, LAYERS, TOKENS, VOCAB, hf_tensors

WriteGGUF = Callable[..., Path]


def requantised(value: np.ndarray, quant: Q) -> torch.Tensor:
    return torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(value, quant), quant))


def refusal(path: Path) -> str:
    """The one line a user gets for this file."""
    with pytest.raises(ModelError) as caught:
        open_checkpoint(path, path.parent)
    assert "\n" not in caught.value.message
    assert str(path) in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("quant", [Q.Q4_1, Q.Q8_0])
def test_tensors_are_hugging_face_s(write_gguf: WriteGGUF, arch: str, quant: Q) -> None:
    checkpoint = open_checkpoint(write_gguf(arch, quant), Path())
    expected = hf_tensors(arch)
    assert sorted(checkpoint.names()) == sorted(expected)
    for name, value in expected.items():
        tensor = checkpoint.get(name)
        if value.ndim == 1:
            assert torch.equal(tensor, torch.from_numpy(value)), name
            continue
        assert isinstance(tensor, GGMLTensor)
        assert tensor.type == quant.name
        assert torch.equal(tensor.dequantise(), requantised(value, quant)), name


def test_biases_are_read_and_those_of_queries_and_keys_reordered(write_gguf: WriteGGUF) -> None:
    expected = hf_tensors(biases=True)
    checkpoint = open_checkpoint(write_gguf(tensors=expected), Path())
    assert checkpoint.config["attention_bias"] is checkpoint.config["mlp_bias"] is True
    biases = [name for name in expected if name.endswith(".bias")]
    assert len(biases) == 7 * LAYERS
    for name in biases:
        assert torch.equal(checkpoint.get(name), torch.from_numpy(expected[name])), name


@pytest.mark.parametrize("gone", ["self_attn.q", "self_attn.o", "mlp.up", "mlp.down"])
def test_a_bias_missing_among_others_is_named(write_gguf: WriteGGUF, gone: str) -> None:
    name = f"model.layers.0.{gone}_proj.bias"
    path = write_gguf(tensors=hf_tensors(biases=True), leave_out=name)
    assert f"tensor {name} is missing" in refusal(path)


def test_half_precision_files_give_plain_tensors(write_gguf: WriteGGUF) -> None:
    checkpoint = open_checkpoint(write_gguf(quant=Q.F16), Path())
    for name, value in hf_tensors().items():
        tensor = checkpoint.get(name)
        assert isinstance(tensor, torch.Tensor)
        want = torch.from_numpy(value)
        assert torch.equal(tensor, want.half() if value.ndim == 2 else want), name


def test_tensors_outlive_their_checkpoint(write_gguf: WriteGGUF) -> None:
    norm = open_checkpoint(write_gguf(), Path()).get("model.norm.weight")
    assert torch.equal(norm, torch.from_numpy(hf_tensors()["model.norm.weight"]))


def test_config_is_hugging_face_s(write_gguf: WriteGGUF) -> None:
    config = open_checkpoint(write_gguf("qwen2"), Path()).config
    assert config["rms_norm_eps"] == pytest.approx(1e-5)
    del config["rms_norm_eps"]
    assert config == {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "intermediate_size": 96,
        "hidden_act": "silu",
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "vocab_size": VOCAB,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "attention_bias": True,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def test_an_output_matrix_of_its_own(write_gguf: WriteGGUF) -> None:
    head = np.ones((VOCAB, HIDDEN), np.float32)
    checkpoint = open_checkpoint(write_gguf(extra_tensors={"output.weight": head}), Path())
    assert checkpoint.config["tie_word_embeddings"] is False
    assert torch.equal(checkpoint.get("lm_head.weight"), torch.from_numpy(head))


def test_rope_scaling(write_gguf: WriteGGUF) -> None:
    linear = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4}
    config = open_checkpoint(write_gguf(extra=linear), Path()).config
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    yarn = {
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4,
        "llama.rope.scaling.original_context_length": 32,
    }
    config = open_checkpoint(write_gguf(extra=yarn), Path()).config
    assert config["rope_scaling"] == {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    none = {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4}
    assert open_checkpoint(write_gguf(extra=none), Path()).config["rope_scaling"] is None
    untold = {"llama.rope.scaling.factor": 4}
    config = open_checkpoint(write_gguf(extra=untold), Path()).config
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    odd = {"llama.rope.scaling.type": "longrope"}
    assert "'longrope' is not supported" in refusal(write_gguf(extra=odd))


def test_llama3_s_frequency_table_is_read_back(tmp_path: Path) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    sizes = {"hidden_size": 128, "num_attention_heads": 2, "head_dim": 64}
    config = LlamaConfig(
        **sizes,
        max_position_embeddings=131072,
        rope_parameters=scaling | {"rope_theta": 500000.0},
    )
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 1 / 500000.0 ** (torch.arange(0, 64, 2) / 64)
    ours = {"head_dim": 64, "rope_theta": 500000.0}
    found = llama3_scaling(plain / scaled, ours, tmp_path)
    assert found.pop("factor") == pytest.approx(32, rel=1e-5)
    assert found == {key: value for key, value in scaling.items() if key != "factor"}
    with pytest.raises(ModelError, match="not Llama 3's"):
        llama3_scaling(torch.linspace(1, 32, 32), ours, tmp_path)


def test_a_frequency_table_in_half_precision_or_quantised(write_gguf: WriteGGUF) -> None:
    ones = np.ones(HEAD_DIM // 2, np.float16)
    checkpoint = open_checkpoint(write_gguf(extra_tensors={"rope_freqs.weight": ones}), Path())
    assert checkpoint.config["rope_scaling"]["factor"] == 1.0
    table = gguf.quants.quantize(np.ones(32, np.float32), Q.Q8_0)
    path = write_gguf(extra_tensors={"rope_freqs.weight": table}, extra_type=Q.Q8_0)
    assert "rope frequencies is quantised" in refusal(path)


# --- the header reader, against the gguf package's ------------------------------------------


def test_header_agrees_with_the_gguf_package(write_gguf: WriteGGUF) -> None:
    path = write_gguf()
    ours, theirs = GGUFFile(path), gguf.GGUFReader(path)
    for key, field in theirs.fields.items():
        if key.startswith("GGUF."):
            continue
        value = ours.metadata[key]
        assert (ours.array(key) if isinstance(value, ArrayRef) else value) == field.contents()
    for tensor in theirs.tensors:
        info = ours.tensors[tensor.name]
        assert info.type == tensor.tensor_type.name
        assert info.shape == tuple(tensor.shape.tolist()[::-1])
        assert (info.offset, info.num_bytes) == (tensor.data_offset, tensor.n_bytes)
    assert ours.array("tokenizer.ggml.tokens") == TOKENS
    assert ours.array("no.such.key") is None


def test_hash_tells_files_apart(write_gguf: WriteGGUF) -> None:
    first = GGUFFile(write_gguf(name="a.gguf")).header_hash()
    assert GGUFFile(write_gguf(name="b.gguf")).header_hash() == first
    assert GGUFFile(write_gguf("qwen2", name="c.gguf")).header_hash() != first


# --- bad files: one line, what is wrong and what to do --------------------------------------


def test_not_a_gguf(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"PK\x03\x04 something else")
    assert "not a GGUF file" in refusal(path)
    path.write_bytes(b"")
    assert "not a GGUF file" in refusal(path)
    path.write_bytes(b"GGUF")
    assert "download it again" in refusal(path)


@pytest.mark.parametrize(
    ("version", "said"), [(1, "version 1"), (9, "version 9"), (3 << 24, "a big-endian GGUF")]
)
def test_versions_we_do_not_read(write_gguf: WriteGGUF, version: int, said: str) -> None:
    path = write_gguf()
    data = bytearray(path.read_bytes())
    data[4:8] = struct.pack("<I", version)
    path.write_bytes(data)
    assert said in refusal(path)


def test_truncated_anywhere(write_gguf: WriteGGUF) -> None:
    path = write_gguf()
    data = path.read_bytes()
    start = GGUFFile(path).data_start
    for length in [*range(4, start, 61), start, len(data) - 4000, len(data) - 64]:
        path.write_bytes(data[:length])
        assert "download it again" in refusal(path)


@pytest.fixture
def header_and_path(write_gguf: WriteGGUF) -> tuple[bytes, Path]:
    path = write_gguf()
    return path.read_bytes()[: GGUFFile(path).data_start], path


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(
    damage=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1)
)
def test_a_damaged_header_never_raises_anything_else(
    header_and_path: tuple[bytes, Path], damage: list[tuple[float, int]]
) -> None:
    header, path = header_and_path
    changed = bytearray(header)
    for where, byte in damage:
        changed[int(where * len(header))] = byte
    with path.open("r+b") as file:
        file.write(changed)
    try:
        checkpoint = open_checkpoint(path, path.parent)
    except ModelError as error:
        assert "\n" not in error.message
    else:
        for name in checkpoint.names():
            checkpoint.get(name)


def test_missing_parts_are_named(write_gguf: WriteGGUF) -> None:
    assert "llama.attention.head_count is missing" in refusal(
        write_gguf(leave_out="attention.head_count")
    )
    gone = "model.layers.1.mlp.up_proj.weight"
    assert f"tensor {gone} is missing" in refusal(write_gguf(leave_out=gone))
    assert "token_embd.weight is missing" in refusal(
        write_gguf(leave_out="model.embed_tokens.weight")
    )


def test_wrong_shapes_are_named(write_gguf: WriteGGUF) -> None:
    tensors = hf_tensors()
    tensors["model.norm.weight"] = np.ones(32, np.float32)
    assert "output_norm.weight has the shape [32], not [64]" in refusal(write_gguf(tensors=tensors))


def test_unsupported_models_are_named(write_gguf: WriteGGUF) -> None:
    assert "architecture 'mamba'" in refusal(write_gguf(written_as="mamba"))
    assert "mixture of experts" in refusal(write_gguf(extra={"llama.expert_count": 8}))
    assert "differs from layer to layer" in refusal(
        write_gguf(
            leave_out="attention.head_count_kv", extra={"llama.attention.head_count_kv": [2, 1]}
        )
    )
    assert "rope.dimension_count differs" in refusal(
        write_gguf(extra={"llama.rope.dimension_count": 8})
    )
    strange = {"blk.0.ssm_a.weight": np.ones(8, np.float32)}
    assert "'blk.0.ssm_a.weight'" in refusal(write_gguf(extra_tensors=strange))


def test_an_unknown_tensor_type_is_named(write_gguf: WriteGGUF) -> None:
    path = write_gguf()
    data = bytearray(path.read_bytes())
    entry = data.index(b"output_norm.weight") + len(b"output_norm.weight") + 4 + 8
    data[entry : entry + 4] = struct.pack("<I", 77)
    path.write_bytes(data)
    assert "output_norm.weight has ggml type 77" in refusal(path)


def test_a_tensor_that_is_not_there(write_gguf: WriteGGUF) -> None:
    with pytest.raises(ModelError, match="no tensor model.nothing"):
        open_checkpoint(write_gguf(), Path()).get("model.nothing")


def test_a_layer_count_beyond_reason(write_gguf: WriteGGUF) -> None:
    many = {"llama.block_count": 4_000_000_000}
    assert "block_count exceeds" in refusal(write_gguf(leave_out="block_count", extra=many))


def test_a_text_longer_than_memory(write_gguf: WriteGGUF) -> None:
    path = write_gguf()
    data = path.read_bytes()
    token = struct.pack("<Q", len(TOKENS[0])) + TOKENS[0].encode()
    path.write_bytes(data.replace(token, struct.pack("<Q", 2**64 - 1) + token[8:], 1))
    assert "garbled inside its header" in refusal(path)
