"""Packed 4-bit weights against the same weights dequantised."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from gguf.constants import GGMLQuantizationType
from gguf.quants import quantize
from tiny import (
    FLOAT32,
    LLAMA,
    MemoryCheckpoint,
    checkpoint_of,
    greedy,
    prompts_of,
    random_model,
    runner_of,
)

from lmserve.models.linear import INT4_MAX_ROWS, Int4Linear, Numerics, SplitLinear
from lmserve.models.registry import build
from lmserve.models.source import Source
from lmserve.weights.quant.ggml import GGMLTensor

CPU = torch.device("cpu")
PACKED = Numerics(torch.float32, CPU, packed=True, deterministic=False)
DETERMINISTIC = Numerics(torch.float32, CPU, packed=True, deterministic=True)


def quantised(weight: torch.Tensor, kind: str) -> GGMLTensor:
    data = quantize(weight.numpy().astype(np.float32), GGMLQuantizationType[kind])
    return GGMLTensor(kind, torch.from_numpy(data), tuple(weight.shape))


def source_of(numerics: Numerics, *kinds: str) -> Source:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"part{i}.weight": quantised(torch.randn(64, 128, generator=generator) * 0.1, kind)
        for i, kind in enumerate(kinds)
    }
    return Source(MemoryCheckpoint({}, tensors), numerics)


def merged(numerics: Numerics, *kinds: str):
    names = [f"part{i}" for i in range(len(kinds))]
    return source_of(numerics, *kinds).linear(names, [64] * len(kinds), 128, bias=False)


@pytest.mark.parametrize("kinds", [("Q4_0",), ("Q4_1", "Q4_1", "Q4_0")])
@pytest.mark.parametrize("rows", [1, 5, INT4_MAX_ROWS, INT4_MAX_ROWS + 1])
def test_packed_is_near_the_exact_product(kinds, rows):
    x = torch.randn(rows, 128, generator=torch.Generator().manual_seed(rows))
    packed, exact = merged(PACKED, *kinds), merged(FLOAT32, *kinds)
    assert isinstance(packed, Int4Linear)
    assert packed(x).dtype == torch.float32
    torch.testing.assert_close(packed(x), exact(x), atol=0.03, rtol=0.02)


def test_parts_of_unlike_kinds_run_side_by_side():
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(3))
    split, exact = merged(PACKED, "Q4_1", "Q8_0"), merged(FLOAT32, "Q4_1", "Q8_0")
    assert isinstance(split, SplitLinear)
    torch.testing.assert_close(split(x), exact(x), atol=0.03, rtol=0.02)
    assert torch.equal(split(x)[:, 64:], exact(x)[:, 64:])


def test_deterministic_rows_do_not_depend_on_their_number():
    linear = merged(DETERMINISTIC, "Q4_1", "Q4_1")
    x = torch.randn(70, 128, generator=torch.Generator().manual_seed(0))
    expected = linear(x)
    for count in (1, 2, 3, 4, 7, 8, 17, 33, 69):
        assert torch.equal(linear(x[:count]), expected[:count])
        assert torch.equal(linear(x[70 - count :]), expected[70 - count :])


def test_a_packed_model_answers_and_says_what_it_is_made_of():
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_key_value_heads": 2}
    module = random_model(transformers.LlamaConfig(**{**LLAMA, **sizes}))
    checkpoint = checkpoint_of(module)
    for name, tensor in checkpoint.tensors.items():
        if tensor.dim() == 2 and "proj" in name:
            checkpoint.tensors[name] = quantised(tensor, "Q4_1")
    checkpoint.tensors["model.embed_tokens.weight"] = quantised(
        checkpoint.tensors["model.embed_tokens.weight"], "Q8_0"
    )
    model = build(checkpoint, "", PACKED)
    assert model.info.weights == "float32 + int4 (q4_1)"
    assert model.info.num_parameters == sum(p.numel() for p in module.parameters())
    prompts = prompts_of(97, [3, 50])
    runner, exact = runner_of(model, PACKED), runner_of(build(checkpoint, "", FLOAT32))
    answers = greedy(runner, prompts, 4)
    assert [len(answer) for answer in answers] == [4, 4]
    assert answers[0][0] == greedy(exact, prompts[:1], 1)[0][0]
