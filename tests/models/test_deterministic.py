"""--deterministic: the bits of a row's logits depend on nothing but the row."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers
from tiny import (
    FLOAT32,
    GEMMA2,
    GREEDY,
    LLAMA,
    prompts_of,
    random_model,
    tables,
    tiny_runner,
    with_kernels,
)

from lmserve.engine.plan import Row, StepPlan
from lmserve.models.linear import DETERMINISTIC_ROWS, TiledLinear
from lmserve.native.select import INSTRUCTIONS

DETERMINISTIC = replace(FLOAT32, deterministic=True)
WIDER = {**LLAMA, "hidden_size": 96, "num_attention_heads": 6, "intermediate_size": 160}


QWEN3 = transformers.Qwen3Config(**WIDER)
GEMMA = transformers.Gemma2Config(**{**GEMMA2, **WIDER, "intermediate_size": 192})


@pytest.mark.parametrize(
    ("config", "kernels", "threads", "dtype"),
    [
        (QWEN3, "torch", 1, torch.float32),
        (QWEN3, "torch", 2, torch.float32),
        (QWEN3, "torch", 3, torch.float32),
        (QWEN3, "torch", 1, torch.bfloat16),
        (QWEN3, "torch", 2, torch.bfloat16),
        (GEMMA, "torch", 3, torch.float32),
        (GEMMA, "torch", 2, torch.bfloat16),
        *((QWEN3, kernels, 3, torch.float32) for kernels in INSTRUCTIONS),
        *((GEMMA, kernels, 2, torch.bfloat16) for kernels in INSTRUCTIONS),
    ],
)
def test_logits_do_not_depend_on_neighbours_batch_size_or_chunks(config, kernels, threads, dtype):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        numerics = with_kernels(kernels, replace(DETERMINISTIC, dtype=dtype), threads)
        runner = tiny_runner(random_model(config), numerics)
        prompt, *others = prompts_of(97, [60, 1, 2, 9, 31, 77])
        blocks = tables(runner, 6, 100)
        expected = _last_logits(runner, prompt, blocks[0], [60], [], [])
        for chunks, neighbours in (
            ([1, 59], 0),
            ([59, 1], 1),
            ([7, 13, 40], 3),
            ([20, 20, 19, 1], 5),
            ([1] * 60, 2),
        ):
            got = _last_logits(runner, prompt, blocks[0], chunks, others[:neighbours], blocks[1:])
            assert torch.equal(got, expected)
    finally:
        torch.set_num_threads(before)


def _last_logits(runner, prompt, blocks, chunks, others, other_blocks):
    """The sequence is the last row; each neighbour runs its whole prompt in every step."""
    start = 0
    for chunk in chunks:
        rows = [
            Row(1 + i, other, 0, table, GREEDY)
            for i, (other, table) in enumerate(zip(others, other_blocks, strict=False))
        ]
        rows.append(Row(0, prompt[start : start + chunk], start, blocks, GREEDY))
        logits = runner.logits(StepPlan(rows))
        start += chunk
    return logits[-1]


def test_a_tiled_product_is_the_same_in_every_place():
    generator = torch.Generator().manual_seed(0)
    linear = TiledLinear(torch.randn(333, 257, generator=generator), None)
    x = torch.randn(3 * DETERMINISTIC_ROWS + 1, 257, generator=generator)
    expected = linear(x)
    torch.testing.assert_close(expected, x @ linear.weight.T, atol=1e-4, rtol=1e-4)
    for seed in range(20):
        generator.manual_seed(seed)
        count = int(torch.randint(1, len(x), (), generator=generator))
        order = torch.randperm(len(x), generator=generator)[:count]
        assert torch.equal(linear(x[order]), expected[order])
