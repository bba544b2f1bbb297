"""Our decoder's greedy answers are those of transformers, token for token."""

from __future__ import annotations

import pytest
import transformers
from tiny import (
    LLAMA,
    LLAMA3_ROPE,
    YARN_ROPE,
    golden,
    greedy,
    prompts_of,
    random_model,
    tiny_runner,
)

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
    "qwen2": lambda: transformers.Qwen2Config(**LLAMA),
    "qwen2-window": lambda: transformers.Qwen2Config(
        **LLAMA, use_sliding_window=True, sliding_window=7, max_window_layers=1
    ),
    "qwen3": lambda: transformers.Qwen3Config(**LLAMA, head_dim=16),
    "qwen3-tied": lambda: transformers.Qwen3Config(**LLAMA, tie_word_embeddings=True),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_transformers(family):
    module = random_model(FAMILIES[family]())
    prompts = prompts_of(97, [1, 3, 17, 40])
    expected = [golden(module, prompt, 20) for prompt in prompts]
    runner = tiny_runner(module)
    assert greedy(runner, prompts, 20) == expected
    assert greedy(runner, prompts, 20, chunk=5) == expected
    assert [greedy(runner, [prompt], 20)[0] for prompt in prompts] == expected
    assert len({tuple(answer) for answer in expected}) > 1


@pytest.mark.parametrize("attention", ["cpu", "sdpa"])
@pytest.mark.parametrize("block_size", [1, 3, 64])
def test_block_size_and_backend_change_nothing(attention, block_size):
    module = random_model(FAMILIES["llama-gqa"]())
    prompts = prompts_of(97, [5, 23])
    expected = [golden(module, prompt, 12) for prompt in prompts]
    runner = tiny_runner(module, attention=attention, block_size=block_size)
    assert greedy(runner, prompts, 12, chunk=7) == expected
