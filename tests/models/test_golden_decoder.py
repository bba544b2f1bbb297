"""Our decoder's greedy answers are those of transformers, token for token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from tiny import (
    FLOAT32,
    GEMMA,
    GEMMA2,
    KERNELS,
    LLAMA,
    LLAMA3_ROPE,
    YARN_ROPE,
    checkpoint_of,
    golden,
    greedy,
    prompts_of,
    random_model,
    tiny_runner,
    with_kernels,
)

from lmserve.errors import ModelError
from lmserve.models.registry import FAMILIES as DECODERS
from lmserve.models.registry import build


def gemma3_config(**options: Any) -> transformers.Gemma3TextConfig:
    thetas = {"rope_theta": 500.0, "rope_local_base_freq": 50.0}  # a few tokens tell them apart
    return transformers.Gemma3TextConfig(**{**GEMMA, **thetas, **options})


FAMILIES = {
    "llama-mha": lambda: transformers.LlamaConfig(**{**LLAMA, "num_key_value_heads": 4}),
    "llama-gqa": lambda: transformers.LlamaConfig(**LLAMA),
    "llama-tied": lambda: transformers.LlamaConfig(**LLAMA, tie_word_embeddings=True),
    "llama-biases": lambda: transformers.LlamaConfig(**LLAMA, attention_bias=True, mlp_bias=True),
    "llama-head-dim": lambda: transformers.LlamaConfig(**LLAMA, head_dim=16),
    "llama3-rope": lambda: transformers.LlamaConfig(**LLAMA, rope_parameters=LLAMA3_ROPE),
    "linear-rope": lambda: transformers.LlamaConfig(
        **LLAMA, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    ),
    "yarn-rope": lambda: transformers.LlamaConfig(**LLAMA, rope_parameters=YARN_ROPE),
    "mistral-window": lambda: transformers.MistralConfig(**LLAMA, sliding_window=9),
    "mistral-head-dim": lambda: transformers.MistralConfig(
        **LLAMA, head_dim=16, sliding_window=None
    ),
    "qwen2": lambda: transformers.Qwen2Config(**LLAMA),
    "qwen2-window": lambda: transformers.Qwen2Config(
        **LLAMA, use_sliding_window=True, sliding_window=7, max_window_layers=1
    ),
    "qwen3": lambda: transformers.Qwen3Config(**LLAMA, head_dim=16),
    "qwen3-tied": lambda: transformers.Qwen3Config(**LLAMA, tie_word_embeddings=True),
    "gemma2": lambda: transformers.Gemma2Config(**GEMMA2),
    "gemma2-plain": lambda: transformers.Gemma2Config(
        **GEMMA, attention_bias=True, attn_logit_softcapping=None, final_logit_softcapping=None
    ),
    "gemma3": lambda: gemma3_config(sliding_window_pattern=2),
    "gemma3-linear-rope": lambda: gemma3_config(
        layer_types=["full_attention", "sliding_attention"],
        rope_scaling={"rope_type": "linear", "factor": 8.0},
        final_logit_softcapping=1.5,
        tie_word_embeddings=False,
    ),
}


@pytest.fixture(scope="module", params=FAMILIES)
def answered(request: pytest.FixtureRequest) -> tuple[Any, list[list[int]], list[list[int]]]:
    """A model, prompts, and transformers' answers."""
    module = random_model(FAMILIES[request.param]())
    prompts = prompts_of(97, [1, 3, 17, 40])
    return module, prompts, [golden(module, prompt, 20) for prompt in prompts]


@pytest.mark.parametrize("kernels", KERNELS)
def test_greedy_equals_transformers(answered, kernels):
    module, prompts, expected = answered
    runner = tiny_runner(module, with_kernels(kernels))
    assert greedy(runner, prompts, 20) == expected
    assert greedy(runner, prompts, 20, chunk=5) == expected
    assert [greedy(runner, [prompt], 20)[0] for prompt in prompts] == expected
    assert len({tuple(answer) for answer in expected}) > 1


def test_greedy_of_the_fused_decoder_equals_transformers(answered):
    module, prompts, expected = answered
    runner = tiny_runner(module, with_kernels("twins"))
    assert greedy(runner, prompts, 10, chunk=9) == [answer[:10] for answer in expected]


@pytest.mark.parametrize(
    ("kernels", "attention"),
    [("torch", "cpu"), ("torch", "sdpa"), ("avx2", "native"), ("twins", "paged")],
)
@pytest.mark.parametrize("block_size", [1, 3, 64])
def test_block_size_and_backend_change_nothing(kernels, attention, block_size):
    module = random_model(FAMILIES["llama-gqa"]())
    prompts = prompts_of(97, [5, 23])
    expected = [golden(module, prompt, 12) for prompt in prompts]
    numerics = with_kernels(kernels)
    runner = tiny_runner(module, numerics, attention=attention, block_size=block_size)
    assert greedy(runner, prompts, 12, chunk=7) == expected


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("Llama", {}),
        ("Mistral", {}),
        ("Mistral", {"sliding_window": None}),
        ("Qwen2", {"sliding_window": 8}),
        ("Qwen2", {"use_sliding_window": True}),
        ("Qwen3", {}),
        ("Qwen3", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}),
    ],
)
def test_what_config_json_leaves_out_is_as_in_transformers(name, given):
    sizes = {"vocab_size": 97, "hidden_size": 64, "intermediate_size": 48}
    sizes |= {"num_attention_heads": 32, "num_hidden_layers": 30}
    architecture = f"{name}ForCausalLM"
    ours = DECODERS[architecture]({**sizes, **given, "architectures": [architecture]})
    theirs = getattr(transformers, f"{name}Config")(**sizes, **given)
    window = getattr(theirs, "sliding_window", None)
    kinds = getattr(theirs, "layer_types", None) or ["sliding_attention"] * 30
    assert ours.windows == tuple(window if "sliding" in kind else None for kind in kinds)
    assert ours.head_dim == (getattr(theirs, "head_dim", None) or 2)
    assert ours.num_kv_heads == theirs.num_key_value_heads
    assert ours.max_positions == theirs.max_position_embeddings
    assert ours.norm_eps == theirs.rms_norm_eps
    assert ours.rope.theta == theirs.rope_parameters["rope_theta"]


@pytest.mark.parametrize(
    ("config", "change", "tensor"),
    [
        (
            lambda: transformers.Qwen3Config(**LLAMA, head_dim=8),
            {"architectures": ["LlamaForCausalLM"]},
            "model.layers.0.self_attn.k_norm.weight",
        ),
        (
            lambda: transformers.LlamaConfig(**LLAMA, attention_bias=True),
            {"attention_bias": False},
            "model.layers.0.self_attn.k_proj.bias",
        ),
    ],
)
def test_a_tensor_that_the_model_has_no_use_for_is_named(config, change, tensor):
    checkpoint = checkpoint_of(random_model(config()))
    checkpoint.config |= change
    with pytest.raises(ModelError, match=f"a tensor '{tensor}'"):
        build(checkpoint, "", FLOAT32)


def test_tensors_that_are_derived_or_tied_are_no_fault():
    checkpoint = checkpoint_of(random_model(FAMILIES["llama-tied"]()))
    assert "lm_head.weight" in checkpoint.tensors
    checkpoint.tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    build(checkpoint, "", FLOAT32)


def test_building_leaves_the_threads_as_they_were():
    before = torch.get_num_threads()
    checkpoint = checkpoint_of(random_model(FAMILIES["llama-gqa"]()))
    seen = []
    checkpoint.get = lambda name: seen.append(torch.get_num_threads()) or checkpoint.tensors[name]
    torch.set_num_threads(2)
    try:
        build(checkpoint, "", FLOAT32)
        assert set(seen) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
