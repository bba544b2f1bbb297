"""Products with quantised weights as on a GPU, against their twins, and models made of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers
from tiny import (
    FLOAT32,
    LLAMA,
    MemoryCheckpoint,
    checkpoint_of,
    golden,
    greedy,
    prompts_of,
    random_model,
    runner_of,
    with_kernels,
)

from bench.perplexity import feed
from bench.quantise import quantiser, shuffled
from lmserve.device.select import device_for
from lmserve.errors import SettingsError
from lmserve.models.linear import DenseLinear, SplitLinear
from lmserve.models.linears import int4
from lmserve.models.linears.float8 import (
    Float8Linear,
    Float8Twin,
    product_on,
    scaled_after,
    scaled_inside,
)
from lmserve.models.registry import build
from lmserve.models.source import Source
from lmserve.weights.quant.base import QuantisedTensor
from lmserve.weights.quant.float8 import round_rows, to_float8
from lmserve.weights.quant.grouped import Groups
from lmserve.weights.quant.schemes import read_scheme

CPU = torch.device("cpu")
PACKED = replace(FLOAT32, packed=True)
TWINS = with_kernels("twins", PACKED)
GROUP = 32


def randn(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def quantised(weight: torch.Tensor, form: str) -> QuantisedTensor:
    """As a checkpoint gives it."""
    config, quantise = quantiser(form, GROUP)
    scheme = read_scheme(None, {"quantization_config": config})
    parts = {f"w.{part}": each for part, each in quantise(weight).items()}
    return scheme.read("w.weight", frozenset(parts), parts.__getitem__)


def merged(numerics, *weights):
    tensors = {f"part{i}.weight": weight for i, weight in enumerate(weights)}
    source = Source(MemoryCheckpoint({}, tensors), numerics)
    sizes = [weight.shape[0] for weight in weights]
    names = [f"part{i}" for i in range(len(weights))]
    return source.linear(names, sizes, weights[0].shape[1], bias=False), source.label


@pytest.mark.parametrize("product", [scaled_inside, scaled_after])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_float8_is_its_twin(product, dtype):
    weight, bias = to_float8(randn(48, 96)), randn(48, seed=1).to(dtype)
    x = randn(7, 96, seed=2).to(dtype)
    x[3] = 0
    got = Float8Linear(weight, bias, product, round_rows)(x)
    expected = Float8Twin(weight, bias, dtype)(x)
    assert got.dtype == expected.dtype == dtype
    step = 1e-5 if dtype == torch.float32 else 2**-6
    torch.testing.assert_close(got, expected, rtol=step, atol=step)
    exact = x.float() @ weight.dequantise().T + bias.float()
    assert (expected.float() - exact).norm() < 0.03 * exact.norm()


def test_float8_rows_are_apart_and_what_is_not_finite_shows():
    weight = to_float8(randn(32, 64))
    linear = Float8Linear(weight, None, scaled_inside, round_rows)
    x = randn(3, 64, seed=1)
    louder = x.clone()
    louder[1] *= 1000
    louder[2, 5] = torch.inf
    for form in (linear, Float8Twin(weight, None, torch.float32)):
        assert torch.equal(form(louder)[0], form(x)[0])
        assert form(louder)[1].isfinite().all()
        assert not form(louder)[2].isfinite().any()


@pytest.mark.parametrize("form", ["inside", "after", "twin"])
def test_a_graph_captures_float8(form):
    weight, bias = to_float8(randn(48, 96)), randn(48, seed=1)
    product = {"inside": scaled_inside, "after": scaled_after}.get(form)
    linear = Float8Twin(weight, bias, torch.float32)
    if product is not None:
        linear = Float8Linear(weight, bias, product, round_rows)
    x, other = randn(4, 96, seed=2), randn(4, 96, seed=3)
    expected = linear(other)
    graph = device_for(CPU).capture(lambda: linear(x))
    x.copy_(other)
    graph.replay()
    assert torch.equal(graph.out, expected)


def test_a_graph_captures_a_weight_dequantised():
    groups = quantised(randn(32, 64), "gptq-act-order").unpack()
    layout = shuffled(int4.TILE_OUTPUTS * 64).int()
    packed = torch.randint(0, 2**31, (4, 1, 32, 2)).int()
    pairs = int4.scale_pairs(groups, 32)
    x = randn(4, 64).bfloat16()

    def run():
        weight = int4.dequantise_plainly(packed, layout, pairs)
        return x.index_select(1, groups.order) @ weight.T

    graph = device_for(CPU).capture(run)
    packed.bitwise_not_()
    graph.replay()
    assert torch.equal(graph.out, run())


def test_the_product_of_this_machine():
    assert product_on(CPU) is scaled_inside


def pack_in_some_order(order):
    """A packer as torch's: tiles of words, whose nibbles it lays in an order of its own."""

    def pack(pairs, steps):
        tile = steps * 16
        codes = torch.stack((pairs >> 4, pairs & 15), -1).flatten(1)
        down, across = codes.shape[0] // int4.TILE_OUTPUTS, codes.shape[1] // tile
        tiles = codes.view(down, int4.TILE_OUTPUTS, across, tile).transpose(1, 2)
        halves = tiles.reshape(down, across, -1)[..., order].view(down, across, -1, 2)
        held = (halves[..., 0] | halves[..., 1] << 4).to(torch.uint8)
        return held.view(torch.int32).view(down, across, 32, -1)

    return pack


@pytest.mark.parametrize("tile", int4.TILE_INPUTS)
def test_a_packed_weight_is_dequantised_whatever_its_layout(tile):
    order = shuffled(int4.TILE_OUTPUTS * tile)
    pack = pack_in_some_order(order)
    layout = int4.learn_layout(pack, CPU, tile)
    assert torch.equal(layout.long(), order.argsort())
    weight = quantised(randn(24, 3 * tile), "awq").unpack()
    pairs = int4.scale_pairs(weight, 32)
    packed = pack(int4.pairs_of_codes(weight.codes), tile // 16)
    got = int4.dequantise_plainly(packed, layout, pairs)
    assert got.dtype == torch.bfloat16
    exact = weight.dequantise(torch.float32)
    torch.testing.assert_close(got.float(), exact, rtol=2**-6, atol=0.02)


def test_scales_of_larger_groups_are_repeated():
    groups = Groups(
        torch.zeros(8, 768, dtype=torch.uint8), torch.ones(8, 2), torch.full((8, 2), 3.0), None
    )
    pairs = int4.scale_pairs(groups, 128)
    assert pairs.shape == (6, 8, 2)
    assert (pairs == torch.tensor([1.0, 5.0]).bfloat16()).all()


@pytest.mark.parametrize("form", ["awq", "gptq", "gptq-act-order"])
def test_int4_twins_are_the_dequantised_weights(form):
    weights = [quantised(randn(32, 64, seed=seed), form) for seed in (1, 2)]
    linear, label = merged(TWINS, *weights)
    assert isinstance(linear, DenseLinear)
    assert label == f"int4 ({form[:4].rstrip('-')} g32)"
    x = randn(5, 64)
    exact = torch.cat([x @ weight.dequantise().T for weight in weights], dim=1)
    torch.testing.assert_close(linear(x), exact)


def test_weights_of_different_forms_run_side_by_side():
    dense = randn(32, 64, seed=3)
    weights = [quantised(randn(32, 64, seed=1), "awq"), quantised(dense, "fp8-channel"), dense]
    linear, label = merged(TWINS, *weights)
    assert isinstance(linear, SplitLinear)
    assert label == "float32 + fp8 (e4m3) + int4 (awq g32)"
    x = randn(5, 64)
    exact = torch.cat([x @ each.T for each in (weights[0].dequantise(), dense, dense)], dim=1)
    torch.testing.assert_close(linear(x), exact, atol=1.5, rtol=0.05)
    assert torch.equal(linear(x)[:, 64:], x @ dense.T)


def test_groups_of_other_inputs_are_not_merged():
    first = quantised(randn(32, 64, seed=1), "gptq-act-order")
    other = replace(first, groups=first.groups.flip(0))
    linear, _ = merged(TWINS, first, other)
    assert isinstance(linear, SplitLinear)
    x = randn(5, 64)
    exact = torch.cat([x @ first.dequantise().T, x @ other.dequantise().T], dim=1)
    torch.testing.assert_close(linear(x), exact)


def module_and_checkpoints(form):
    """A model whose weights are the quantised ones, and both its checkpoints."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "tie_word_embeddings": True}
    module = random_model(transformers.LlamaConfig(**{**LLAMA, **sizes}))
    held = checkpoint_of(module)
    for name, parameter in module.named_parameters():
        if "_proj" in name:
            weight = quantised(parameter.detach(), form)
            held.tensors[name] = weight
            with torch.no_grad():
                parameter.copy_(weight.dequantise())
    return module, held


FORMS = {
    "awq": "int4 (awq g32)",
    "gptq-act-order": "int4 (gptq g32)",
    "gptq-int8": "float32",
    "fp8-block": "fp8 (e4m3)",
}


@pytest.mark.parametrize("form", FORMS)
def test_a_quantised_model_answers_as_its_dequantised_one(form):
    module, held = module_and_checkpoints(form)
    prompts = prompts_of(97, [3, 40])
    expected = [golden(module, prompt, 5) for prompt in prompts]
    exact = with_kernels("twins", FLOAT32)
    assert greedy(runner_of(build(held, "", FLOAT32)), prompts, 5) == expected
    assert greedy(runner_of(build(held, "", exact), exact), prompts, 5) == expected
    model = build(held, "", TWINS)
    assert FORMS[form] in model.info.weights
    assert model.info.num_parameters == sum(each.numel() for each in module.parameters())
    answers = greedy(runner_of(model, TWINS), prompts, 5)
    if form == "fp8-block":  # rounds activations too
        assert [len(answer) for answer in answers] == [5, 5]
    else:
        assert answers == expected


@pytest.mark.parametrize("form", ["awq", "gptq-act-order", "gptq-int8", "fp8-block"])
def test_the_native_kernels_take_them_too(form):
    _, held = module_and_checkpoints(form)
    native = with_kernels("avx2", PACKED)
    model = build(held, "", native)
    assert f"int{4 if form == 'awq' else 8} (" in model.info.weights
    prompts = prompts_of(97, [3, 40])
    exact = greedy(runner_of(build(held, "", FLOAT32)), prompts, 1)
    assert greedy(runner_of(model, native), prompts, 1) == exact


def test_weights_rounded_as_they_are_loaded():
    module = random_model(transformers.LlamaConfig(**{**LLAMA, "hidden_size": 64}))
    held = checkpoint_of(module)
    numerics = replace(TWINS, quantization="fp8")
    model = build(held, "", numerics)
    assert model.info.weights == "float32 + fp8 (e4m3)"
    assert isinstance(model.head, DenseLinear)
    assert torch.equal(model.head.weight, held.tensors["lm_head.weight"])
    layer = model.layers[0]
    assert isinstance(layer.down, Float8Twin)
    rounded = layer.down.weight * layer.down.scales.T
    exact = held.tensors["model.layers.0.mlp.down_proj.weight"]
    assert 0 < (rounded - exact).norm() < 0.03 * exact.norm()
    prompts = prompts_of(97, [3, 40])
    assert [len(each) for each in greedy(runner_of(model, numerics), prompts, 3)] == [3, 3]


@pytest.mark.parametrize(
    ("numerics", "form", "said"),
    [
        (replace(TWINS, quantization="fp8"), "awq", "is quantised already"),
        (replace(PACKED, quantization="fp8"), None, "--quantization fp8 runs on cuda"),
        (replace(TWINS, quantization="fp8", packed=False), None, "--dtype float32"),
    ],
)
def test_rounding_that_cannot_be_is_refused(numerics, form, said):
    module = random_model(transformers.LlamaConfig(**{**LLAMA, "hidden_size": 64}))
    held = checkpoint_of(module)
    if form is not None:
        name = "model.layers.0.mlp.down_proj.weight"
        held.tensors[name] = quantised(held.tensors[name], "fp8-channel")
    with pytest.raises(SettingsError, match=said) as caught:
        build(held, "", numerics)
    assert "\n" not in caught.value.message


def test_kv_in_float8_predicts_nearly_the_same():
    module = random_model(transformers.LlamaConfig(**LLAMA))
    prompts = prompts_of(97, [50, 60])
    losses = []
    for kv_dtype in (None, torch.float8_e4m3fn):
        numerics = replace(with_kernels("twins"), rounded_kv=kv_dtype)
        model = build(checkpoint_of(module), "", numerics)
        runner = runner_of(model, numerics)
        keys, values = model.attention.kv[0]
        assert keys.dtype == values.dtype == numerics.kv_dtype
        losses.append(feed(runner, prompts, (7, 1, 20)))
    change = losses[1] - losses[0]
    assert 0 < change.abs().mean() < 0.2
    assert change.mean().abs() < 0.1
