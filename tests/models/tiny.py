"""Tiny random models from literals, and steps over blocks that the test lays out itself."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers

from lmserve.attention.select import select_attention
from lmserve.engine.cache.layout import CacheLayout, block_bytes
from lmserve.engine.plan import Row, StepPlan
from lmserve.engine.runner import Runner
from lmserve.fused.plain import PlainOps
from lmserve.models.base import Model
from lmserve.models.linear import Numerics
from lmserve.models.registry import build
from lmserve.native.library import Kernels, load
from lmserve.native.select import INSTRUCTIONS, runnable
from lmserve.sampling import SamplingParams

GREEDY = SamplingParams(temperature=0.0)
FLOAT32 = Numerics(torch.float32, torch.device("cpu"), packed=False, deterministic=False)
KERNELS = ("torch", *INSTRUCTIONS)
BLOCK_SIZE = 4
SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
LLAMA = {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2}
GEMMA = {**LLAMA, "head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 12}
GEMMA2 = {**GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 1.5}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}


class MemoryCheckpoint:
    """What models read of a checkpoint, over a dict."""

    def __init__(self, config: dict[str, Any], tensors: dict[str, Any]):
        self.config = config
        self.tensors = tensors

    def names(self) -> list[str]:
        return list(self.tensors)

    def get(self, name: str) -> Any:
        return self.tensors[name]

    def stored(self, name: str) -> None:
        """Not in a file."""


def random_model(config: transformers.PreTrainedConfig, seed: int = 0) -> Any:
    """Weights large enough that the next token is a clear choice, biases and norms included."""
    torch.manual_seed(seed)
    module = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            centre = 0.0 if "Gemma" in type(module).__name__ else 1.0
            mean = centre if "norm" in name and name.endswith("weight") else 0.0
            parameter.normal_(mean, 0.25)
    return module.eval()


def checkpoint_of(module: Any) -> MemoryCheckpoint:
    config = {**module.config.to_dict(), "architectures": [type(module).__name__]}
    return MemoryCheckpoint(config, dict(module.state_dict()))


def with_kernels(name: str, numerics: Numerics = FLOAT32, num_threads: int = 1) -> Numerics:
    """The same on these kernels; skips where they cannot run."""
    if name == "torch":
        return numerics
    if name == "twins":
        return replace(numerics, fused=PlainOps())
    reason = runnable()[name]
    if reason is not None:
        pytest.skip(f"{name}: {reason}")
    return replace(numerics, kernels=Kernels(name, load(name), num_threads))


def runner_of(
    model: Model,
    numerics: Numerics = FLOAT32,
    *,
    attention: str | None = None,
    block_size: int = BLOCK_SIZE,
    num_blocks: int = 256,
    max_model_len: int = 128,
) -> Runner:
    shape = replace(model.info.cache, block_size=block_size)
    backend = select_attention(
        attention or _attention_of(numerics),
        shape,
        numerics.kv_dtype,
        numerics.device,
        numerics.deterministic,
        numerics.kernels,
    )
    size = block_bytes(shape.num_layers, shape.num_kv_heads, shape.head_dim, block_size, 4)
    layout = CacheLayout(num_blocks, block_size, size, max_model_len)
    return Runner(model, backend, layout, numerics)


def _attention_of(numerics: Numerics) -> str:
    if numerics.fused is not None:
        return "paged"
    return "cpu" if numerics.kernels is None else "native"


def tiny_runner(module: Any, numerics: Numerics = FLOAT32, **options: Any) -> Runner:
    return runner_of(build(checkpoint_of(module), "", numerics), numerics, **options)


def golden(module: Any, prompt: list[int], num_tokens: int) -> list[int]:
    """transformers' own greedy answer."""
    out = module.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        max_new_tokens=num_tokens,
        do_sample=False,
    )
    return out[0, len(prompt) :].tolist()


def tables(runner: Runner, count: int, length: int, seed: int = 0) -> list[list[int]]:
    """Block tables in no order, none sharing a block."""
    free = list(range(runner.num_blocks))
    random.Random(seed).shuffle(free)
    size = -(-length // runner.block_size)
    return [free[i * size : (i + 1) * size] for i in range(count)]


def greedy(
    runner: Runner, prompts: list[list[int]], num_tokens: int, chunk: int | None = None
) -> list[list[int]]:
    """All prompts in one batch, each prefilled in chunks, decoding as soon as it can."""
    texts = [list(prompt) for prompt in prompts]
    done = [0] * len(texts)
    ends = [len(prompt) + num_tokens for prompt in prompts]
    blocks = tables(runner, len(texts), max(ends))
    while rows := [
        _row(i, text, done[i], blocks[i], chunk)
        for i, text in enumerate(texts)
        if len(text) < ends[i]
    ]:
        result = runner.run(StepPlan(rows))
        assert not result.errors
        assert set(result.tokens) == {row.rid for row in rows if row.sampling is not None}
        for row in rows:
            done[row.rid] = row.context_len
        for rid, tokens in result.tokens.items():
            texts[rid] += tokens
    return [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]


def _row(rid: int, text: list[int], done: int, blocks: list[int], chunk: int | None) -> Row:
    tokens = text[done:] if chunk is None else text[done : done + chunk]
    last = done + len(tokens) == len(text)
    return Row(rid, tokens, done, blocks, GREEDY if last else None)


def prompts_of(vocab_size: int, lens: list[int], seed: int = 0) -> list[list[int]]:
    source = random.Random(seed)
    return [[source.randrange(vocab_size) for _ in range(length)] for length in lens]
