"""The memory of a step is measured, and left to it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from tiny import FLOAT32, LLAMA, checkpoint_of, random_model, runner_of

from lmserve.device.host import HostDevice
from lmserve.device.select import device_for
from lmserve.engine.cache.layout import CacheLayout
from lmserve.engine.memory import (
    GRAPH_BYTES,
    LIBRARY_BYTES,
    choose_layout,
    largest_step,
    measure_steps,
)
from lmserve.models.registry import build
from lmserve.settings import EngineSettings

VOCAB_SIZE, ROOM = LLAMA["vocab_size"], device_for(torch.device("meta")).free_bytes()


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return build(checkpoint_of(random_model(transformers.LlamaConfig(**LLAMA))), "", FLOAT32)


class Maker:
    """Makes runners, and notes of which layouts."""

    def __init__(self, model):
        self.model = model
        self.made: list[CacheLayout] = []

    def __call__(self, layout: CacheLayout):
        self.made.append(layout)
        return runner_of(
            self.model,
            block_size=layout.block_size,
            num_blocks=layout.num_blocks,
            max_model_len=layout.max_model_len,
        )


def measured(model, **settings) -> int:
    settings = {"max_batch_size": 4, "graphs": False, **settings}
    total, free = measure_steps(EngineSettings(**settings), HostDevice(), Maker(model), 16, 128)
    assert free == HostDevice().free_bytes()
    return total - LIBRARY_BYTES


def test_what_a_step_takes_grows_with_its_tokens_and_its_rows(model):
    few, many = measured(model, max_step_tokens=32), measured(model, max_step_tokens=320)
    hidden = LLAMA["hidden_size"] * 4
    assert few > 32 * hidden
    assert many - few > 288 * hidden
    wide = measured(model, max_step_tokens=64, max_batch_size=64)
    assert wide > 2 * 64 * VOCAB_SIZE * 4  # logits, and what is drawn by
    assert wide - measured(model, max_step_tokens=64) > 60 * VOCAB_SIZE * 4


def test_graphs_take_what_decodes_do_and_some_each(model):
    without = measured(model, max_step_tokens=64)
    with_graphs = measured(model, max_step_tokens=64, graphs=True)
    assert 4 * VOCAB_SIZE * 4 < with_graphs - without - 3 * GRAPH_BYTES < without


def test_it_measures_with_a_cache_that_just_holds_a_row(model):
    make = Maker(model)
    settings = EngineSettings(max_batch_size=4, max_step_tokens=96)
    measure_steps(settings, device := HostDevice(), make, 16, 128)
    assert [(each.num_blocks, each.max_model_len) for each in make.made] == [(2, 25)]
    assert device.num_released == 1
    make.made.clear()
    settings = EngineSettings(max_batch_size=1, max_step_tokens=4096)
    measure_steps(settings, HostDevice(), make, 16, 128)  # longer than the model's contexts
    assert make.made[0].max_model_len == 128


def test_the_largest_step_has_all_rows_draw():
    plan = largest_step(3, 5, 2)
    assert plan.num_tokens == 15
    assert all(row.sampling is not None for row in plan.rows)


def attention_of(model, device: str):
    """On a device that tells its memory; nothing runs there."""
    shape = replace(model.info.cache, block_size=16)
    return SimpleNamespace(shape=shape, dtype=torch.float16, device=torch.device(device))


def test_on_a_cpu_nothing_is_measured(model):
    layout = choose_layout(
        EngineSettings(), model, attention_of(model, "cpu"), lambda layout: pytest.fail("made")
    )
    assert layout.num_blocks * 16 == 2 * 64 * 128  # of what can run at once, twice as many


def test_elsewhere_the_share_is_of_what_is_free(model):
    layout = choose_layout(
        EngineSettings(max_batch_size=4, max_step_tokens=64),
        model,
        attention_of(model, "meta"),
        Maker(model),
    )
    assert 0 <= int(0.8 * ROOM) - layout.num_bytes < layout.block_bytes
    asked = choose_layout(
        EngineSettings(max_batch_size=4, max_step_tokens=64, cache_max_entry_count=0.3),
        model,
        attention_of(model, "meta"),
        Maker(model),
    )
    assert 0 <= int(0.3 * ROOM) - asked.num_bytes < asked.block_bytes


def test_a_step_always_fits_beside_the_cache(model, caplog):
    settings = EngineSettings(max_batch_size=4, max_step_tokens=64, cache_max_entry_count=1.0)
    layout = choose_layout(settings, model, attention_of(model, "meta"), Maker(model))
    step_bytes, _ = measure_steps(settings, HostDevice(), Maker(model), 16, 128)
    assert 0 <= ROOM - step_bytes - layout.num_bytes < layout.block_bytes
    assert caplog.text.count("--max-step-tokens") == 1
