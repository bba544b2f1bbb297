"""The native decoder beside the torch one: hidden states, logits, what it refuses."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from tiny import (
    FLOAT32,
    GEMMA2,
    GREEDY,
    LLAMA,
    checkpoint_of,
    prompts_of,
    random_model,
    runner_of,
    tiny_runner,
)

from lmserve.engine.plan import Row, StepPlan
from lmserve.errors import SettingsError
from lmserve.models.native import NativeDecoder
from lmserve.models.registry import build
from lmserve.native.library import Kernels

CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**LLAMA, attention_bias=True, mlp_bias=True),
    "qwen3": lambda: transformers.Qwen3Config(**LLAMA, head_dim=16, tie_word_embeddings=True),
    "gemma2": lambda: transformers.Gemma2Config(**GEMMA2),
}


@pytest.mark.parametrize("family", CONFIGS)
def test_hidden_states_and_logits_are_those_of_torch(kernels, family):
    module = random_model(CONFIGS[family]())
    rows = [
        Row(i, prompt, 0, [10 * i + each for each in range(10)], GREEDY)
        for i, prompt in enumerate(prompts_of(97, [1, 7, 33]))
    ]
    told = []
    for numerics in (FLOAT32, replace(FLOAT32, kernels=kernels)):
        runner = tiny_runner(module, numerics)
        with torch.inference_mode():
            _, hidden, finite = runner._compute(StepPlan(rows))
            assert finite.dtype == torch.bool and finite.all()
            told.append((runner._model.normed(hidden), runner.logits(StepPlan(rows))))
    for ours, torchs in zip(told[1], told[0], strict=True):
        torch.testing.assert_close(ours, torchs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_token_that_is_not_finite_is_told(kernels, bad):
    module = random_model(CONFIGS["llama"]())
    with torch.no_grad():
        module.model.embed_tokens.weight[13, 5] = bad
    runner = tiny_runner(module, replace(FLOAT32, kernels=kernels))
    rows = [Row(0, [1, 2, 13], 0, [0], GREEDY), Row(1, [4, 5], 0, [1], GREEDY)]
    _, _, finite = runner._compute(StepPlan(rows))
    assert not finite[2]
    assert finite[3:].all()


@pytest.mark.parametrize("token", [-1, 97, 10**6])
def test_a_token_beyond_the_vocabulary_is_refused(kernels, token):
    runner = tiny_runner(random_model(CONFIGS["llama"]()), replace(FLOAT32, kernels=kernels))
    with pytest.raises(IndexError, match=f"token {token} is not in the vocabulary"):
        runner.run(StepPlan([Row(0, [1, token], 0, [0], GREEDY)]))


def test_weights_stay_in_16_bits_unless_a_dtype_is_asked_for(kernels):
    checkpoint = checkpoint_of(random_model(CONFIGS["llama"]()).bfloat16())
    for packed, label in ((True, "bfloat16"), (False, "float32")):
        numerics = replace(FLOAT32, kernels=kernels, packed=packed)
        model = build(checkpoint, "", numerics)
        assert isinstance(model, NativeDecoder)
        assert model.info.weights == f"{label}, {kernels.name} kernels"
        assert model.info.dtype == "float32"


def test_attention_of_torch_s_is_refused(kernels):
    numerics = replace(FLOAT32, kernels=kernels)
    model = build(checkpoint_of(random_model(CONFIGS["llama"]())), "", numerics)
    with pytest.raises(SettingsError, match="need their own attention, not sdpa"):
        runner_of(model, numerics, attention="sdpa")


def test_the_number_of_threads_changes_nothing(kernels):
    module = random_model(CONFIGS["gemma2"]())
    prompts = prompts_of(97, [40, 1, 90, 3])
    rows = [Row(i, p, 0, list(range(30 * i, 30 * i + 30)), GREEDY) for i, p in enumerate(prompts)]
    told = []
    for num_threads in (1, 2, 5):
        own = Kernels(kernels.name, kernels.library, num_threads)
        runner = tiny_runner(module, replace(FLOAT32, kernels=own))
        told += [runner.logits(StepPlan(rows)) for _ in range(20)]
    assert all(torch.equal(each, told[0]) for each in told)
