"""Models we have no decoder for run through transformers over our paged attention."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers
from tiny import (
    FLOAT32,
    GREEDY,
    LLAMA,
    SMALL,
    golden,
    greedy,
    prompts_of,
    random_model,
    runner_of,
    with_kernels,
)

from lmserve.engine.plan import Row, StepPlan
from lmserve.errors import ModelError
from lmserve.models.hf import HfModel

LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "partial_rotary_factor": 1.0,
}
CONFIGS = {
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**SMALL, intermediate_size=48),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=128,
        bos_token_id=None, eos_token_id=None,
    ),
    "phi": lambda: transformers.PhiConfig(**{**LLAMA, "partial_rotary_factor": 0.5}),
    "gemma2": lambda: transformers.Gemma2Config(
        **LLAMA, head_dim=8, sliding_window=6, attn_logit_softcapping=5.0, query_pre_attn_scalar=8
    ),
    "mixtral": lambda: transformers.MixtralConfig(**LLAMA, num_local_experts=4),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **LLAMA, head_dim=8, sliding_window=6, query_pre_attn_scalar=8
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "kernels"),
    [*((family, "torch") for family in CONFIGS), ("phi", "avx2"), ("gemma2", "avx512")],
)
def test_greedy_equals_transformers(family, kernels, tmp_path):
    module = random_model(CONFIGS[family]())
    module.save_pretrained(tmp_path)
    prompts = prompts_of(97, [1, 9, 30])
    expected = [golden(module, prompt, 12) for prompt in prompts]
    numerics = with_kernels(kernels)
    runner = runner_of(HfModel(str(tmp_path), type(module).__name__, numerics), numerics)
    assert greedy(runner, prompts, 12) == expected
    assert greedy(runner, prompts, 12, chunk=4) == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            lambda: transformers.MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2),
            "MambaForCausalLM.*not supported|cannot load MambaForCausalLM",
        ),
        (
            lambda: transformers.BloomConfig(vocab_size=97, hidden_size=32, n_layer=2, n_head=4),
            "BloomForCausalLM.*not supported|cannot load BloomForCausalLM",
        ),
        (
            lambda: transformers.CohereConfig(
                **LLAMA,
                rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
            ),
            "rope scaling 'dynamic' is not supported",
        ),
        (
            lambda: transformers.Phi3Config(
                **LLAMA, original_max_position_embeddings=32, rope_parameters=LONG_ROPE
            ),
            "rope scaling 'longrope' is not supported",
        ),
    ],
)
def test_a_model_without_replaceable_attention_is_refused(config, message, tmp_path):
    module = transformers.AutoModelForCausalLM.from_config(config())
    module.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=message) as caught:
        HfModel(str(tmp_path), type(module).__name__, FLOAT32)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "config",
    [
        lambda: transformers.GPTJConfig(
            vocab_size=97, n_embd=32, n_layer=2, n_head=4, rotary_dim=4
        ),
        lambda: transformers.FalconConfig(
            vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4
        ),
    ],
)
def test_a_model_with_an_attention_of_its_own_is_refused_or_right(config, tmp_path):
    """Releases of transformers make one after the other replaceable."""
    module = transformers.AutoModelForCausalLM.from_config(config()).eval()
    module.save_pretrained(tmp_path)
    try:
        model = HfModel(str(tmp_path), type(module).__name__, FLOAT32)
    except ModelError as error:
        assert "is not supported: its attention cannot be replaced" in error.message
        return
    prompts = prompts_of(97, [1, 9, 30])
    expected = [golden(module, prompt, 12) for prompt in prompts]
    assert greedy(runner_of(model, FLOAT32), prompts, 12) == expected


def test_deterministic_is_refused(tmp_path):
    with pytest.raises(ModelError, match="cannot be deterministic"):
        HfModel(str(tmp_path), "GPT2LMHeadModel", replace(FLOAT32, deterministic=True))


@pytest.fixture
def neox(tmp_path):
    random_model(CONFIGS["gpt_neox"]()).save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_mixes_the_tokens_of_a_step_is_refused(neox, monkeypatch, dtype):
    """Here each token is given some of the one before it, whose ever that is."""
    numerics = replace(FLOAT32, dtype=dtype)
    HfModel(neox, "GPTNeoXForCausalLM", numerics)
    layer = transformers.models.gpt_neox.modeling_gpt_neox.GPTNeoXMLP
    plain = layer.forward
    monkeypatch.setattr(layer, "forward", lambda self, x: plain(self, x + x.roll(1, dims=1)))
    with pytest.raises(ModelError, match="depends on the others in its batch"):
        HfModel(neox, "GPTNeoXForCausalLM", numerics)


def test_attention_that_looks_ahead_is_refused(neox, monkeypatch):
    layer = transformers.models.gpt_neox.modeling_gpt_neox.GPTNeoXAttention
    plain = layer.__init__

    def init(self, *args, **kwargs):
        plain(self, *args, **kwargs)
        self.is_causal = False

    monkeypatch.setattr(layer, "__init__", init)
    with pytest.raises(ModelError, match="its attention is not causal"):
        HfModel(neox, "GPTNeoXForCausalLM", FLOAT32)


def test_logits_are_computed_where_they_are_wanted_only(neox):
    model = HfModel(neox, "GPTNeoXForCausalLM", FLOAT32)
    counts = []
    model._module.get_output_embeddings().register_forward_hook(
        lambda _, inputs, out: counts.append(out.shape[-2])
    )
    runner = runner_of(model)
    runner.run(StepPlan([Row(0, [1] * 9, 0, [0, 1, 2], None)]))
    runner.run(StepPlan([Row(0, [1, 2], 9, [0, 1, 2], GREEDY), Row(1, [3], 0, [3], GREEDY)]))
    assert counts == [2]
