"""What Gemma has beyond the Llama family: its defaults, its softcaps, the model inside a larger
one, and integer products."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers
from gguf.constants import GGMLQuantizationType
from gguf.quants import quantize
from tiny import (
    FLOAT32,
    GEMMA,
    GEMMA2,
    GREEDY,
    KERNELS,
    MemoryCheckpoint,
    checkpoint_of,
    golden,
    greedy,
    prompts_of,
    random_model,
    runner_of,
    tables,
    tiny_runner,
    with_kernels,
)

from lmserve.engine.plan import Row, StepPlan
from lmserve.errors import ModelError
from lmserve.models.registry import FAMILIES, build
from lmserve.weights.quant.ggml import GGMLTensor

CONFIGS = {
    "Gemma2ForCausalLM": lambda: transformers.Gemma2Config(**GEMMA2),
    "Gemma3ForCausalLM": lambda: transformers.Gemma3TextConfig(
        **GEMMA, final_logit_softcapping=1.5
    ),
}
DEFAULTS = {
    "Gemma2ForCausalLM": transformers.Gemma2Config,
    "Gemma3ForCausalLM": transformers.Gemma3TextConfig,
}
SEEING = "Gemma3ForConditionalGeneration"
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


@pytest.mark.parametrize("name", DEFAULTS)
@pytest.mark.parametrize(
    "given",
    [{}, {"sliding_window_pattern": 3}, {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}],
)
def test_what_config_json_leaves_out_is_as_in_transformers(name, given):
    if name == "Gemma2ForCausalLM":
        given = {}
    written = DEFAULTS[name](**given).to_dict()
    ours = FAMILIES[name]({**given, "architectures": [name]})
    assert ours == FAMILIES[name]({**written, "architectures": [name]})
    kinds = written["layer_types"]
    window = written["sliding_window"]
    assert ours.windows == tuple(window if "sliding" in kind else None for kind in kinds)


def test_attention_to_what_comes_after_is_refused():
    config = {"architectures": ["Gemma3ForCausalLM"], "use_bidirectional_attention": True}
    with pytest.raises(ModelError, match="use_bidirectional_attention"):
        FAMILIES["Gemma3ForCausalLM"](config)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    ("kernels", "deterministic"),
    [("torch", False), ("torch", True), ("avx2", False), ("avx512", False), ("twins", False)],
)
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)])
def test_logits_equal_transformers(name, kernels, deterministic, dtype, close):
    module = random_model(CONFIGS[name]()).to(dtype)
    (prompt,) = prompts_of(97, [40])
    with torch.inference_mode():
        expected = module(torch.tensor([prompt])).logits[0, -1]
    numerics = replace(FLOAT32, dtype=dtype, deterministic=deterministic)
    runner = tiny_runner(module, with_kernels(kernels, numerics))
    (blocks,) = tables(runner, 1, 40)
    got = runner.logits(StepPlan([Row(0, prompt, 0, blocks, GREEDY)]))[-1]
    torch.testing.assert_close(got.float(), expected.float(), atol=close, rtol=close)
    assert 0.5 < got.abs().max() <= 1.5  # the cap


@pytest.mark.parametrize("saved", ["then", "now"])
def test_the_text_part_of_a_model_that_sees(saved):
    config = transformers.Gemma3Config(
        text_config=transformers.Gemma3TextConfig(**{**GEMMA, "sliding_window": 5}).to_dict(),
        vision_config=VISION,
        image_token_id=90,
        boi_token_index=91,
        eoi_token_index=92,
        mm_tokens_per_image=4,
    )
    torch.manual_seed(0)
    module = transformers.Gemma3ForConditionalGeneration._from_config(
        config, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.25)
    tensors = dict(module.state_dict())
    if saved == "then":
        tensors = {
            name.replace("model.language_model.", "language_model.model.")
            .replace("model.vision_tower.", "vision_tower.")
            .replace("lm_head.", "language_model.lm_head."): tensor
            for name, tensor in tensors.items()
        }
    checkpoint = MemoryCheckpoint({**config.to_dict(), "architectures": [SEEING]}, tensors)
    model = build(checkpoint, "", FLOAT32)
    assert model.info.architecture == SEEING
    prompts = [[token % 90 for token in prompt] for prompt in prompts_of(97, [3, 21])]
    assert greedy(runner_of(model), prompts, 12) == [golden(module, p, 12) for p in prompts]
    del checkpoint.tensors[max(checkpoint.tensors, key=lambda name: "up_proj" in name)]
    with pytest.raises(ModelError, match="lacks the tensor"):
        build(checkpoint, "", FLOAT32)


@pytest.mark.parametrize("kernels", KERNELS)
def test_with_integer_products(kernels):
    """Every part of a quantised file in the form it is served in."""
    sizes = {"hidden_size": 64, "intermediate_size": 96}
    module = random_model(transformers.Gemma2Config(**{**GEMMA2, **sizes}))
    checkpoint = checkpoint_of(module)
    for name, tensor in checkpoint.tensors.items():
        if tensor.dim() == 2:
            kind = GGMLQuantizationType.Q8_0
            data = torch.from_numpy(quantize(tensor.numpy(), kind))
            checkpoint.tensors[name] = GGMLTensor("Q8_0", data, tuple(tensor.shape))
    (prompt,) = prompts_of(97, [30])
    results = []
    for numerics in (FLOAT32, with_kernels(kernels, replace(FLOAT32, packed=True))):
        runner = runner_of(build(checkpoint, "", numerics), numerics)
        (blocks,) = tables(runner, 1, 30)
        results.append(runner.logits(StepPlan([Row(0, prompt, 0, blocks, GREEDY)]))[-1])
    torch.testing.assert_close(results[1], results[0], atol=0.1, rtol=0.05)
