"""The fused decoder: as the decoder, by kernels as by twins, in as few launches as it says, and in
a graph."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from tiny import (
    FLOAT32,
    GEMMA,
    GREEDY,
    LLAMA,
    checkpoint_of,
    prompts_of,
    random_model,
    runner_of,
    tables,
)
from torch.utils._python_dispatch import TorchDispatchMode

from lmserve.attention.base import AttentionBatch
from lmserve.attention.paged_torch import PagedTorchAttention
from lmserve.device.host import HostDevice
from lmserve.device.launches import noted_by
from lmserve.engine.plan import Row, StepPlan
from lmserve.errors import SettingsError
from lmserve.fused.base import Ops
from lmserve.fused.kernels import TritonOps
from lmserve.fused.plain import PlainOps
from lmserve.models.fused import FusedDecoder
from lmserve.models.registry import build

CONFIGS = {
    "qwen3": lambda: transformers.Qwen3Config(**LLAMA, head_dim=16),
    "gemma3": lambda: transformers.Gemma3TextConfig(**GEMMA, sliding_window_pattern=2),
}
NUM_BLOCKS, BLOCK_SIZE = 8, 2

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="of kernels that run on the CPU"
)


def fused_of(module: Any, ops: Ops, attention: type[PagedTorchAttention]) -> FusedDecoder:
    """Bound to a cache of its own."""
    model = build(checkpoint_of(module), "", replace(FLOAT32, fused=ops))
    assert isinstance(model, FusedDecoder)
    shape = replace(model.info.cache, block_size=BLOCK_SIZE)
    backend = attention(shape, torch.float32, torch.device("cpu"))
    size = (NUM_BLOCKS, BLOCK_SIZE, shape.num_kv_heads, shape.head_dim)
    backend.bind([(torch.zeros(size), torch.zeros(size)) for _ in range(shape.num_layers)])
    model.bind(backend, 128)
    return model


def test_kernels_give_what_the_decoder_gives():
    module = random_model(CONFIGS["gemma3"]())
    (prompt,) = prompts_of(97, [5])
    results = []
    for ops in (None, PlainOps(), TritonOps()):
        numerics = replace(FLOAT32, fused=ops)
        runner = runner_of(build(checkpoint_of(module), "", numerics), numerics)
        (blocks,) = tables(runner, 1, 5)
        results.append(runner.logits(StepPlan([Row(0, prompt, 0, blocks, GREEDY)])))
    for got in results[1:]:
        torch.testing.assert_close(got, results[0], atol=1e-5, rtol=1e-5)


class Untouched(PagedTorchAttention):
    """Attention that launches nothing."""

    def attend(self, q, layer, options, metadata):
        return q


class Calls(TorchDispatchMode):
    """Notes what runs on the device: launches, and operations that compute."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self._inside = False

    def launched(self, function: Any, args: Any, kwargs: Any) -> None:
        self.names.append(function.__name__)
        self._inside = True
        function(*args, **kwargs)
        self._inside = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if not (self._inside or func.is_view or "empty" in name):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", CONFIGS)
def test_launches_of_a_layer(name):
    model = fused_of(random_model(CONFIGS[name]()), TritonOps(), Untouched)
    batch = AttentionBatch([0, 0], [1, 1], [[1], [2]])
    metadata = model.attention.prepare(batch)
    calls = Calls()
    token_ids, positions = torch.tensor([3, 4]), torch.tensor([0, 0])
    with torch.inference_mode(), noted_by(calls), calls:
        model.forward(token_ids, positions, metadata)
    layer = [
        *("launch_norm", "linear", "launch_rope_write", "linear"),
        *("launch_norm", "linear", "launch_gate", "linear"),
    ]
    embed = ["index_select", "mul_"] if name == "gemma3" else ["index_select"]
    assert calls.names == [*embed, *layer, *layer, "launch_norm"]


def test_a_captured_step_goes_on_with_what_its_inputs_hold():
    module = random_model(CONFIGS["gemma3"]())
    (prompt,) = prompts_of(97, [3])

    def steps(captured: bool) -> list[torch.Tensor]:
        """Logits of each token of the prompt, one a step, beside a row of padding."""
        model = fused_of(module, TritonOps(), PagedTorchAttention)
        token_ids, positions, slots = (torch.zeros(2, dtype=torch.int64) for _ in range(3))
        table = torch.tensor([[3, 5], [7, 7]], dtype=torch.int32)
        context_lens = torch.ones(2, dtype=torch.int32)
        slots[:] = 7 * BLOCK_SIZE
        metadata = model.attention.decode_metadata(slots, table, context_lens, 8)

        def run() -> tuple[torch.Tensor, torch.Tensor]:
            hidden, finite = model.forward(token_ids, positions, metadata)
            return model.logits(hidden), finite

        graph = HostDevice().capture(run) if captured else None
        results = []
        for position, token in enumerate(prompt):
            token_ids[0], positions[0] = token, position
            slots[0] = (3 if position < BLOCK_SIZE else 5) * BLOCK_SIZE + position % BLOCK_SIZE
            context_lens[0] = position + 1
            if graph is not None:
                graph.replay()
            logits, finite = run() if graph is None else graph.out
            assert finite.all()
            results.append(logits[0].clone())
        return results

    with torch.inference_mode():
        eager, replayed = steps(captured=False), steps(captured=True)
        expected = module(torch.tensor([prompt])).logits[0]
    assert torch.equal(torch.stack(eager), torch.stack(replayed))
    torch.testing.assert_close(torch.stack(eager), expected, atol=1e-4, rtol=1e-4)


def test_what_is_not_finite_is_told_of_its_row_alone():
    model = fused_of(random_model(CONFIGS["qwen3"]()), PlainOps(), PagedTorchAttention)
    model.embed.table[5] = torch.nan
    metadata = model.attention.prepare(AttentionBatch([0, 0], [2, 2], [[1], [2]]))
    tokens, positions = torch.tensor([4, 5, 6, 7]), torch.tensor([0, 1, 0, 1])
    with torch.inference_mode():
        hidden, finite = model.forward(tokens, positions, metadata)
    assert finite[1:].tolist() == [False, True, True]
    assert model.normed(hidden)[2:].isfinite().all()


def test_other_attention_is_refused():
    numerics = replace(FLOAT32, fused=PlainOps())
    model = build(checkpoint_of(random_model(CONFIGS["qwen3"]())), "", numerics)
    with pytest.raises(SettingsError, match="paged attention, not sdpa"):
        runner_of(model, numerics, attention="sdpa")


def test_products_with_one_row_by_kernels():
    module = random_model(CONFIGS["qwen3"]())
    model = fused_of(module, TritonOps(), PagedTorchAttention)
    times = iter(range(100, 0, -1))
    model.measure_products(lambda run: next(times))
    metadata = model.attention.prepare(AttentionBatch([0], [1], [[1]]))
    calls, token_ids, positions = Calls(), torch.tensor([5]), torch.tensor([0])
    with torch.inference_mode():
        with noted_by(calls):
            hidden, _ = model.forward(token_ids, positions, metadata)
            got = model.logits(hidden)
        expected = module(token_ids[None]).logits[0]
        token_ids, positions = token_ids.repeat(2), positions.repeat(2)
        metadata = model.attention.prepare(AttentionBatch([0, 0], [1, 1], [[1], [2]]))
        two, _ = model.forward(token_ids, positions, metadata)  # by the library
    torch.testing.assert_close(two, hidden.expand(2, -1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    assert calls.names.count("launch_row_product") == 4 * 2 + 1
    assert "launch_gate" not in calls.names
