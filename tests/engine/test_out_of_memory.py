"""A step that runs out of memory is survived: with a real model, on a host that has little."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from tiny import LLAMA, checkpoint_of, prompts_of, random_model, with_kernels

from lmserve.attention.select import select_attention
from lmserve.device.host import HostDevice
from lmserve.engine import steps
from lmserve.engine.cache.layout import CacheLayout
from lmserve.engine.core import EngineCore
from lmserve.engine.device_runner import DeviceRunner
from lmserve.messages import Submit, pack_ids, unpack_ids
from lmserve.models.registry import build
from lmserve.sampling import SamplingParams
from lmserve.settings import EngineSettings
from lmserve.weights.base import TokenizerAssets

GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
PROMPTS = prompts_of(LLAMA["vocab_size"], [90, 70, 80, 60], seed=1)


@pytest.fixture(scope="module")
def module():
    torch.set_num_threads(1)
    return random_model(transformers.LlamaConfig(**LLAMA))


def core_of(module, *, overlaps: bool) -> EngineCore:
    numerics = with_kernels("twins")
    model = build(checkpoint_of(module), "", numerics)
    shape = replace(model.info.cache, block_size=16)
    backend = select_attention("paged", shape, numerics.kv_dtype, numerics.device, False, None)
    runner = DeviceRunner(
        model,
        backend,
        CacheLayout(64, 16, 0, 128),
        numerics,
        max_rows=4,
        graphs=False,
        overlaps=overlaps,
        assets=TokenizerAssets(Path("tokenizer.json")),
    )
    core = EngineCore(EngineSettings(max_batch_size=4, max_step_tokens=512), runner)
    core.load(lambda stage: None)
    return core


def answers(core: EngineCore) -> dict[int, list[int]]:
    core.handle([Submit(rid, pack_ids(prompt), GREEDY) for rid, prompt in enumerate(PROMPTS)])
    told: dict[int, list[int]] = {}
    for _ in range(100):
        if not core.has_work():
            break
        for output in core.step().outputs:
            assert output.error is None
            told.setdefault(output.rid, []).extend(unpack_ids(output.token_ids))
    assert not core.has_work()
    return told


@pytest.mark.parametrize("overlaps", [False, True], ids=["in turn", "overlapping"])
def test_what_does_not_fit_at_once_is_run_in_parts(module, overlaps, caplog, monkeypatch):
    # pytest keeps what is logged, with the traceback, whose frames hold the tensors
    monkeypatch.setattr(steps.logger, "disabled", True)
    large = core_of(module, overlaps=overlaps)
    with HostDevice().measure_peak() as peak:
        expected = answers(large)
    assert large.scheduler.max_step_tokens == 512
    core = core_of(module, overlaps=overlaps)
    with HostDevice(room_bytes=peak.num_bytes // 2).limited():
        assert answers(core) == expected
    assert 64 <= core.scheduler.max_step_tokens < 300
    assert "ran out of memory: steps have" in caplog.text
