"""The embedded default model, where this machine has it already. (transformers reads a GGUF
itself only with accelerate; the weights of its golden answers are read by us.)"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers
from tiny import greedy

from lmserve.engine.loader import load_runner
from lmserve.settings import EngineSettings
from lmserve.weights.checkpoint import open_checkpoint

ROOT = Path(os.environ.get("LMSERVE_CACHE_DIR") or Path.home() / ".cache" / "lmserve")
FILE = ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not FILE.exists(), reason="the default model is not downloaded"),
]
PROMPTS = [
    "The capital of France is",
    "<|im_start|>user\nWrite three lines about the sea.<|im_end|>\n<|im_start|>assistant\n",
    "def fibonacci(n):\n",
]
NUM_TOKENS = 64


def runner_of(**settings):
    chosen = EngineSettings(
        model=str(FILE), session_len=256, max_batch_size=4, threads=1, **settings
    )
    return load_runner(chosen, lambda stage: None)


def tokens_of(runner) -> list[list[int]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(runner.assets.tokenizer_file))
    return [tokenizer.encode(prompt).ids for prompt in PROMPTS]


@cache
def golden() -> list[list[int]]:
    """What transformers answers with the same weights, dequantised."""
    checkpoint = open_checkpoint(FILE, ROOT)
    config = transformers.LlamaConfig(**checkpoint.config)
    module = transformers.LlamaForCausalLM(config).eval()
    tensors = {name: checkpoint.get(name) for name in checkpoint.names()}
    dense = {
        name: tensor if isinstance(tensor, torch.Tensor) else tensor.dequantise(torch.float32)
        for name, tensor in tensors.items()
    }
    missing, unexpected = module.load_state_dict(dense, strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected
    answers = []
    for prompt in tokens_of(runner_of(dtype="float32")):
        out = module.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=NUM_TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        answers.append(out[0, len(prompt) :].tolist())
    return answers


def test_float32_equals_transformers_for_64_tokens():
    runner = runner_of(dtype="float32")
    prompts = tokens_of(runner)
    assert runner.weights == "float32"
    assert greedy(runner, prompts, NUM_TOKENS) == golden()
    assert greedy(runner, prompts, NUM_TOKENS, chunk=4) == golden()
    assert greedy(runner, prompts[:1], NUM_TOKENS) == golden()[:1]


def test_deterministic_answers_do_not_depend_on_the_batch():
    runner = runner_of(deterministic=True)
    prompts = tokens_of(runner)
    together = greedy(runner, prompts, 24)
    assert greedy(runner, prompts, 24, chunk=5) == together
    assert [greedy(runner, [prompt], 24)[0] for prompt in prompts] == together


def test_packed_answers_make_sense():
    from tokenizers import Tokenizer

    runner = runner_of()
    assert "int4 (q4_1)" in runner.weights
    (answer,) = greedy(runner, tokens_of(runner)[:1], 8)
    assert "Paris" in Tokenizer.from_file(str(runner.assets.tokenizer_file)).decode(answer)
