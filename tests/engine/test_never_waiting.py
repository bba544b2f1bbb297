"""Launching a step on a device never waits for it: on CUDA that would end the overlap."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from tiny import GREEDY, LLAMA, checkpoint_of, random_model, with_kernels

from lmserve.attention.select import select_attention
from lmserve.device.host import HostDevice
from lmserve.engine.cache.layout import CacheLayout
from lmserve.engine.device_runner import DeviceRunner
from lmserve.engine.plan import UNREAD, BlockCopy, Row, StepPlan
from lmserve.models.registry import build
from lmserve.sampling import SamplingParams

DRAWN = SamplingParams(temperature=1.0, top_p=0.9, top_k=20, repetition_penalty=1.2)
LATE = SamplingParams(temperature=0.0, logprobs=3)
PROMPT = [1, 2, 3, 4, 5]


@pytest.fixture(scope="module")
def runner() -> DeviceRunner:
    torch.set_num_threads(1)
    numerics = with_kernels("twins")
    model = build(checkpoint_of(random_model(transformers.LlamaConfig(**LLAMA))), "", numerics)
    shape = replace(model.info.cache, block_size=4)
    backend = select_attention("paged", shape, numerics.kv_dtype, numerics.device, False, None)
    layout = CacheLayout(64, 4, 0, 128)
    return DeviceRunner(model, backend, layout, numerics, max_rows=4, graphs=True, overlaps=True)


def row(rid: int, num_run: int, sampling: SamplingParams, *, unread: bool = False) -> Row:
    tokens = [*PROMPT, *range(7, 7 + num_run)]
    start = num_run and len(tokens) - 1
    if unread:
        return Row(rid, [UNREAD], start, [2 * rid, 2 * rid + 1], sampling, tokens[:-1], 5)
    return Row(rid, tokens[start:], start, [2 * rid, 2 * rid + 1], sampling, tokens, 5)


@pytest.mark.parametrize("graphs", [False, True], ids=["eager", "graphs"])
@pytest.mark.parametrize("sampling", [GREEDY, DRAWN, LATE], ids=["greedy", "drawn", "late"])
def test_a_launch_never_waits(runner, sampling, graphs):
    for _ in range(20 if graphs else 0):
        if runner.wants_chore(idle=True):
            runner.do_chore()
    plans = [
        StepPlan([row(0, 0, sampling), row(1, 0, sampling)]),
        StepPlan([row(0, 1, sampling, unread=True), row(1, 1, sampling, unread=True)]),
        StepPlan([row(0, 2, sampling), row(2, 0, sampling)]),
        StepPlan([row(3, 1, sampling)], [BlockCopy(0, 6, 2)], [7]),
    ]
    for plan in plans:
        known = [each if not each.is_unread else row(each.rid, 1, sampling) for each in plan.rows]
        with HostDevice().never_waiting():
            step = runner.launch(plan)
            step.draw(known, None)
        result = step.result()
        assert result.errors == {}
        assert list(result.tokens) == [each.rid for each in plan.rows]
