"""Integer products with quantised weights against the same weights dequantised."""

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

from lmserve.models.linear import (
    INT4_MAX_ROWS,
    LEVELS,
    WEIGHT_LEVELS,
    Int8Linear,
    Numerics,
    RowCountLinear,
    SplitLinear,
)
from lmserve.models.registry import build
from lmserve.models.source import Source, to_int4, to_int8
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


@pytest.mark.parametrize("kinds", [("Q4_0",), ("Q4_1", "Q4_1", "Q4_0"), ("Q4_1", "Q8_0")])
@pytest.mark.parametrize("rows", [1, INT4_MAX_ROWS, INT4_MAX_ROWS + 1, 130])
def test_packed_is_near_the_exact_product(kinds, rows):
    x = torch.randn(rows, 128, generator=torch.Generator().manual_seed(rows))
    packed, exact = merged(PACKED, *kinds), merged(FLOAT32, *kinds)
    assert isinstance(packed, Int8Linear if "Q8_0" in kinds else RowCountLinear)
    assert packed(x).dtype == torch.float32
    torch.testing.assert_close(packed(x), exact(x), atol=0.05, rtol=0.02)


def test_int8_computes_exactly_what_its_bytes_say():
    """The largest values of all, too: a 16-bit sum of two products would overflow."""
    generator = torch.Generator().manual_seed(0)
    for size, num_rows in ((64, 1), (100, 3), (576, 33)):
        codes = torch.randint(-127, 128, (48, size), generator=generator, dtype=torch.int8)
        codes[:3], codes[3:6] = WEIGHT_LEVELS, -WEIGHT_LEVELS
        x = torch.randint(-LEVELS, LEVELS + 1, (num_rows, size), generator=generator).float()
        x[0] = LEVELS
        x[:, 0] = -LEVELS
        linear = Int8Linear(codes, torch.ones(48), None)
        expected = x.double() @ codes.double().T
        torch.testing.assert_close(linear(x).double(), expected, atol=1.0, rtol=1e-5)
        small = torch.full((num_rows, 1), 2.0**-20)
        torch.testing.assert_close(linear(x * small), linear(x) * small, atol=0, rtol=1e-5)


def test_int8_keeps_small_activations_beside_large_ones():
    """One byte an activation would lose them all."""
    x = torch.full((2, 128), 0.004)
    x[:, 7] = 1.0
    weight = torch.ones(32, 128)
    weight[:, 7] = 0.0
    codes, scales = (weight * WEIGHT_LEVELS).to(torch.int8), torch.full((32,), 1 / WEIGHT_LEVELS)
    torch.testing.assert_close(Int8Linear(codes, scales, None)(x), x @ weight.T, atol=0, rtol=0.05)


def test_int8_of_zeros_and_of_numbers_that_are_not():
    linear = merged(PACKED, "Q8_0")
    x = torch.zeros(3, 128)
    x[1, 5], x[2, 5] = torch.nan, torch.inf
    out = linear(x)
    assert torch.equal(out[0], torch.zeros(64))
    assert not out[1:].isfinite().any()


def test_weights_become_bytes_with_the_least_error():
    weights = list(source_of(PACKED, "Q4_1", "Q8_0")._checkpoint.tensors.values())
    codes, scales = to_int8(weights)
    exact = torch.cat([weight.dequantise() for weight in weights])
    assert ((codes * scales[:, None] - exact).abs() <= 0.501 * scales[:, None]).all()
    assert torch.equal(codes.abs().amax(1), torch.full((128,), WEIGHT_LEVELS, dtype=torch.int8))


def test_int4_refuses_what_its_kernel_cannot_run():
    weights = list(source_of(PACKED, "Q4_1", "Q8_0")._checkpoint.tensors.values())
    assert to_int4(weights, None) is None
    assert to_int4(weights[:1], None) is not None


def test_quantised_and_dense_parts_run_side_by_side():
    source = source_of(PACKED, "Q4_1", "Q8_0")
    tensors = source._checkpoint.tensors
    tensors["part1.weight"] = tensors["part1.weight"].dequantise()
    linear = source.linear(["part0", "part1"], [64, 64], 128, bias=False)
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(3))
    exact = merged(FLOAT32, "Q4_1", "Q8_0")
    assert isinstance(linear, SplitLinear)
    torch.testing.assert_close(linear(x), exact(x), atol=0.05, rtol=0.02)
    assert torch.equal(linear(x)[:, 64:], x @ tensors["part1.weight"].T)


@pytest.mark.parametrize("kinds", [("Q4_1", "Q4_1"), ("Q8_0",)])
def test_deterministic_rows_do_not_depend_on_their_number(kinds):
    linear = merged(DETERMINISTIC, *kinds)
    assert isinstance(linear, Int8Linear)
    x = torch.randn(300, 128, generator=torch.Generator().manual_seed(0))
    expected = linear(x)
    for count in (1, 2, 3, 4, 7, 8, 17, 33, 69, 299):
        assert torch.equal(linear(x[:count]), expected[:count])
        assert torch.equal(linear(x[300 - count :]), expected[300 - count :])


def test_a_neighbour_does_not_change_a_row():
    linear = merged(PACKED, "Q4_1")
    for rows in (2, 9):
        x = torch.randn(rows, 128, generator=torch.Generator().manual_seed(0))
        louder = x.clone()
        louder[1:] *= 1000
        assert torch.equal(linear(louder)[0], linear(x)[0])


def test_a_packed_model_answers_and_says_what_it_is_made_of():
    sizes = {"hidden_size": 64, "intermediate_size": 96, "tie_word_embeddings": True}
    module = random_model(transformers.LlamaConfig(**{**LLAMA, **sizes}))
    checkpoint = checkpoint_of(module)
    for name, tensor in checkpoint.tensors.items():
        if tensor.dim() == 2 and "proj" in name:
            checkpoint.tensors[name] = quantised(tensor, "Q4_1")
    checkpoint.tensors["model.embed_tokens.weight"] = quantised(
        checkpoint.tensors["model.embed_tokens.weight"], "Q8_0"
    )
    model = build(checkpoint, "", PACKED)
    assert model.info.weights == "int4, int8 (q4_1) + int8 (q8_0)"
    assert model.info.num_parameters == sum(p.numel() for p in module.parameters())
    prompts = prompts_of(97, [3, 50])
    runner, exact = runner_of(model, PACKED), runner_of(build(checkpoint, "", FLOAT32))
    answers = greedy(runner, prompts, 4)
    assert [len(answer) for answer in answers] == [4, 4]
    assert answers[0][0] == greedy(exact, prompts[:1], 1)[0][0]
