"""Models we have no decoder for run through transformers over our paged attention."""

from __future__ import annotations

from dataclasses import replace

import pytest
import transformers
from tiny import FLOAT32, LLAMA, SMALL, golden, greedy, prompts_of, random_model, runner_of

from lmserve.errors import ModelError
from lmserve.models.hf import HfModel

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
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **LLAMA, head_dim=8, sliding_window=6, query_pre_attn_scalar=8
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", CONFIGS)
def test_greedy_equals_transformers(family, tmp_path):
    module = random_model(CONFIGS[family]())
    module.save_pretrained(tmp_path)
    prompts = prompts_of(97, [1, 9, 30])
    expected = [golden(module, prompt, 12) for prompt in prompts]
    runner = runner_of(HfModel(str(tmp_path), type(module).__name__, FLOAT32))
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
    ],
)
def test_a_model_without_replaceable_attention_is_refused(config, message, tmp_path):
    module = transformers.AutoModelForCausalLM.from_config(config())
    module.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=message) as caught:
        HfModel(str(tmp_path), type(module).__name__, FLOAT32)
    assert "\n" not in caught.value.message


def test_deterministic_is_refused(tmp_path):
    with pytest.raises(ModelError, match="cannot be deterministic"):
        HfModel(str(tmp_path), "GPT2LMHeadModel", replace(FLOAT32, deterministic=True))
