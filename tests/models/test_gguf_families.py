"""GGUF files of each family, named and shaped by the gguf package: transformers' answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
import transformers
from tiny import (
    GEMMA,
    GEMMA2,
    KERNELS,
    LLAMA,
    golden,
    greedy,
    prompts_of,
    random_model,
    runner_of,
    with_kernels,
)

from lmserve.errors import ModelError
from lmserve.models.registry import build
from lmserve.weights.checkpoint import open_checkpoint

THETAS = {"rope_theta": 500.0, "rope_local_base_freq": 50.0}
CASES: dict[str, tuple[str, Any, dict[str, Any]]] = {  # architecture, model, keys of its own
    "mistral": (
        "llama",
        lambda: transformers.MistralConfig(**LLAMA, head_dim=16, sliding_window=9),
        {"attention.sliding_window": 9},
    ),
    "gemma2": (
        "gemma2",
        lambda: transformers.Gemma2Config(**GEMMA2 | {"query_pre_attn_scalar": 8}),
        {
            "attention.sliding_window": 6,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 1.5,
        },
    ),
    "gemma3": (
        "gemma3",
        lambda: transformers.Gemma3TextConfig(
            **GEMMA | THETAS | {"query_pre_attn_scalar": 8, "num_hidden_layers": 7}
        ),
        {"attention.sliding_window": 6, "rope.freq_base": 500.0, "rope.freq_base_swa": 50.0},
    ),
    "gemma3-linear-rope": (
        "gemma3",
        lambda: transformers.Gemma3TextConfig(
            **GEMMA | {"query_pre_attn_scalar": 8},
            sliding_window_pattern=2,
            rope_scaling={"rope_type": "linear", "factor": 8.0},
        ),
        {
            "attention.sliding_window": 6,
            "attention.sliding_window_pattern": 2,
            "rope.freq_base": 1e6,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
        },
    ),
}


def write(path: Path, arch: str, module: Any, own: dict[str, Any]) -> None:
    config = module.config
    writer = gguf.GGUFWriter(path, arch)
    keys = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
    }
    for key, value in (keys | own).items():
        adds = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        adds[type(value)](f"{arch}.{key}", value)
    kind = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}[arch]
    table = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    for name, tensor in module.state_dict().items():
        value = tensor.numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        for part, count in heads.items():
            if arch == "llama" and part in name:  # rotary pairs side by side
                value = value.reshape(count, 2, -1, value.shape[1]).swapaxes(1, 2)
                value = value.reshape(tensor.shape)
        if arch.startswith("gemma"):
            if name == "lm_head.weight":
                continue
            value = value + 1 if "norm" in name else value
        writer.add_tensor(table.get_name(name, (".weight",)), value.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("case", CASES)
def test_greedy_equals_transformers(case, kernels, tmp_path):
    arch, config, own = CASES[case]
    module = random_model(config())
    path = tmp_path / "tiny.gguf"
    write(path, arch, module, own)
    numerics = with_kernels(kernels)
    model = build(open_checkpoint(path, tmp_path), str(path), numerics)
    prompts = prompts_of(97, [3, 25])
    assert greedy(runner_of(model, numerics), prompts, 12) == [
        golden(module, p, 12) for p in prompts
    ]


def test_gemma2_s_own_settings_where_the_file_is_old(tmp_path):
    arch, config, _ = CASES["gemma2"]
    path = tmp_path / "tiny.gguf"
    write(path, arch, random_model(config()), {})
    read = open_checkpoint(path, tmp_path).config
    assert (read["attn_logit_softcapping"], read["final_logit_softcapping"]) == (50.0, 30.0)
    assert read["sliding_window"] == 4096
    assert read["layer_types"] == ["sliding_attention", "full_attention"]


def test_a_gemma3_file_without_its_window_is_refused(tmp_path):
    arch, config, _ = CASES["gemma3"]
    path = tmp_path / "tiny.gguf"
    write(path, arch, random_model(config()), {})
    with pytest.raises(ModelError, match=r"gemma3\.attention\.sliding_window is missing"):
        open_checkpoint(path, tmp_path)
