"""Tiny models written from literals: a GGUF file and a directory of safetensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Q
from safetensors.torch import save_file

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 64, 96, 2, 4, 2, 16
ALPHABET = [chr(c) for c in range(33, 127)] + ["Ġ", "Ċ"]  # bytes as GPT-2 spells them
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *ALPHABET, "12", "123", "ab", "Ġab"]
MERGES = ["1 2", "12 3", "a b", "Ġ ab"]
VOCAB = len(TOKENS)


def hf_tensors(
    arch: str = "llama", seed: int = 0, *, biases: bool = False
) -> dict[str, np.ndarray]:
    """Random weights under Hugging Face's names, float32."""
    random = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(np.float32)

    q, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    tensors = {
        "model.embed_tokens.weight": normal(VOCAB, HIDDEN),
        "model.norm.weight": normal(HIDDEN),
    }
    for i in range(LAYERS):
        layer = {
            "input_layernorm.weight": normal(HIDDEN),
            "self_attn.q_proj.weight": normal(q, HIDDEN),
            "self_attn.k_proj.weight": normal(kv, HIDDEN),
            "self_attn.v_proj.weight": normal(kv, HIDDEN),
            "self_attn.o_proj.weight": normal(HIDDEN, q),
            "post_attention_layernorm.weight": normal(HIDDEN),
            "mlp.gate_proj.weight": normal(INNER, HIDDEN),
            "mlp.up_proj.weight": normal(INNER, HIDDEN),
            "mlp.down_proj.weight": normal(HIDDEN, INNER),
        }
        if arch == "qwen2" or biases:
            layer |= {
                f"self_attn.{n}_proj.bias": normal(s)
                for n, s in zip("qkv", (q, kv, kv), strict=True)
            }
        if biases:
            layer |= {
                f"{n}_proj.bias": normal(s)
                for n, s in (
                    ("self_attn.o", HIDDEN),
                    ("mlp.gate", INNER),
                    ("mlp.up", INNER),
                    ("mlp.down", HIDDEN),
                )
            }
        if arch == "qwen3":
            layer |= {f"self_attn.{n}_norm.weight": normal(HEAD_DIM) for n in "qk"}
        tensors |= {f"model.layers.{i}.{name}": value for name, value in layer.items()}
    return tensors


GGUF_PARTS = {  # llama.cpp's names, spelled out here apart from the code under test
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.": "blk.",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    for ours, theirs in GGUF_PARTS.items():
        name = name.replace(ours, theirs)
    return name


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to the Q and K of a Llama."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def set_metadata(writer: gguf.GGUFWriter, arch: str, leave_out: str | None) -> None:
    numbers: dict[str, int | float] = {
        "block_count": LAYERS,
        "context_length": 128,
        "embedding_length": HIDDEN,
        "feed_forward_length": INNER,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 10000.0,
    }
    for key, value in numbers.items():
        if key == leave_out:
            continue
        if isinstance(value, int):
            writer.add_uint32(f"{arch}.{key}", value)
        else:
            writer.add_float32(f"{arch}.{key}", value)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    if leave_out != "tokens":
        writer.add_token_list(TOKENS)
        writer.add_token_types([3, 3, 3] + [1] * (VOCAB - 3))
        writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{{ messages }}")


@pytest.fixture
def write_gguf(tmp_path: Path) -> Callable[..., Path]:
    """Writes a tiny GGUF and returns its path."""

    def write(
        arch: str = "llama",
        quant: Q = Q.Q4_1,
        *,
        tensors: dict[str, np.ndarray] | None = None,
        leave_out: str | None = None,
        extra: dict[str, Any] | None = None,
        extra_tensors: dict[str, np.ndarray] | None = None,
        extra_type: Q | None = None,
        written_as: str | None = None,
        name: str = "tiny.gguf",
    ) -> Path:
        path = tmp_path / name
        writer = gguf.GGUFWriter(path, written_as or arch)
        set_metadata(writer, arch, leave_out)
        for key, value in (extra or {}).items():
            add = writer.add_string if isinstance(value, str) else writer.add_uint32
            (writer.add_array if isinstance(value, list) else add)(key, value)
        for hf, value in (tensors or hf_tensors(arch)).items():
            if hf == leave_out:
                continue
            if arch == "llama" and ".q_proj." in hf:
                value = interleave(value, HEADS)
            if arch == "llama" and ".k_proj." in hf:
                value = interleave(value, KV_HEADS)
            if value.ndim == 1:
                writer.add_tensor(gguf_name(hf), value)
            else:
                packed = gguf.quants.quantize(value, quant)
                writer.add_tensor(gguf_name(hf), packed, raw_dtype=quant)
        for raw, value in (extra_tensors or {}).items():
            writer.add_tensor(raw, value, raw_dtype=extra_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "vocab_size": VOCAB,
    "max_position_embeddings": 128,
    "eos_token_id": 0,
    "bos_token_id": 1,
}


@pytest.fixture
def write_directory(tmp_path: Path) -> Callable[..., Path]:
    """Writes a tiny directory of safetensors and returns its path."""

    def write(
        *, shards: int = 1, config: dict[str, Any] | None = None, **files: dict[str, Any]
    ) -> Path:
        path = tmp_path / "tiny"
        path.mkdir()
        (path / "config.json").write_text(json.dumps(CONFIG | (config or {})))
        for name, value in files.items():
            (path / f"{name}.json").write_text(json.dumps(value))
        tensors = {name: torch.from_numpy(value) for name, value in hf_tensors().items()}
        if shards == 1:
            save_file(tensors, path / "model.safetensors")
            return path
        where = {}
        for index in range(shards):
            part = dict(list(tensors.items())[index::shards])
            name = f"model-{index + 1:05}-of-{shards:05}.safetensors"
            save_file(part, path / name)
            where |= dict.fromkeys(part, name)
        index_json = {"metadata": {}, "weight_map": where}
        (path / "model.safetensors.index.json").write_text(json.dumps(index_json))
        return path

    return write
