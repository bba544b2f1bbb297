"""How the memory is shared out: what a step takes is measured, the KV cache gets its share."""

from __future__ import annotations

from collections.abc import Callable

from lmserve.attention.base import AttentionBackend
from lmserve.device.base import Device
from lmserve.device.select import device_for
from lmserve.engine.base_runner import BaseRunner
from lmserve.engine.cache.layout import (
    DEFAULT_BYTES,
    DEFAULT_SHARE,
    CacheLayout,
    available_memory,
    block_bytes,
    plan_layout,
)
from lmserve.engine.graphs import buckets
from lmserve.engine.plan import Row, StepPlan
from lmserve.engine.step_runner import default_batch_size, default_step_tokens
from lmserve.models.base import Model
from lmserve.sampling import SamplingParams
from lmserve.settings import EngineSettings

CUDA_SHARE = 0.8
IDLE_SHARE = 2  # on CPU the cache may hold this many times what can run at once
GRAPH_BYTES = 48 * 2**20  # what CUDA keeps of captured steps of a size, of three kinds
LIBRARY_BYTES = 256 * 2**20  # what libraries take when they are first asked for something
SAMPLED = SamplingParams(temperature=1.0, top_p=0.9)  # its distributions take the most memory

MakeRunner = Callable[[CacheLayout], BaseRunner]


def choose_layout(
    settings: EngineSettings, model: Model, attention: AttentionBackend, make_runner: MakeRunner
) -> CacheLayout:
    """Of the cache of a loaded model. `make_runner` makes it a runner, for a measurement too."""
    shape, kind = attention.shape, attention.device.type
    model_len = model.info.max_positions
    max_batch_size = settings.max_batch_size or default_batch_size(kind)
    bytes_per_block = block_bytes(
        shape.num_layers,
        shape.num_kv_heads,
        shape.head_dim,
        shape.block_size,
        attention.dtype.itemsize,
    )
    if kind == "cpu":
        step_bytes, available = 0, available_memory()
    else:
        device = device_for(attention.device)
        step_bytes, available = measure_steps(
            settings, device, make_runner, shape.block_size, model_len
        )
    return plan_layout(
        bytes_per_block=bytes_per_block,
        block_size=shape.block_size,
        model_len=model_len,
        session_len=settings.session_len,
        share=settings.cache_max_entry_count,
        available_bytes=available,
        step_bytes=step_bytes,
        default_share=DEFAULT_SHARE if kind == "cpu" else CUDA_SHARE,
        default_bytes=DEFAULT_BYTES if kind == "cpu" else None,
        # other programs want the CPU's memory, nobody a GPU's
        max_tokens=IDLE_SHARE * max_batch_size * (settings.session_len or model_len)
        if kind == "cpu"
        else None,
        num_blocks=settings.num_blocks,
    )


def measure_steps(
    settings: EngineSettings,
    device: Device,
    make_runner: MakeRunner,
    block_size: int,
    model_len: int,
) -> tuple[int, int]:
    """Bytes to be left to steps, what the largest takes and graphs of decodes beside it; and those
    that are free beside a runner with next to no cache."""
    name = device.torch_device.type
    num_rows = settings.max_batch_size or default_batch_size(name)
    num_tokens = settings.max_step_tokens or default_step_tokens(name)
    num_rows = min(num_rows, num_tokens)
    longest = min(-(-num_tokens // num_rows), model_len - 1)
    num_blocks = -(-(longest + 1) // block_size)
    runner = make_runner(CacheLayout(num_blocks, block_size, 0, min(longest + 1, model_len)))
    step_bytes = measure_peak(device, runner, largest_step(num_rows, longest, num_blocks))
    if settings.graphs:
        decodes = largest_step(num_rows, 1, num_blocks)
        step_bytes += measure_peak(device, runner, decodes) + len(buckets(num_rows)) * GRAPH_BYTES
    free_bytes = device.free_bytes()  # libraries have taken theirs by now
    del runner
    device.release_cached()
    return step_bytes + LIBRARY_BYTES, free_bytes


def largest_step(num_rows: int, num_tokens: int, num_blocks: int) -> StepPlan:
    """All rows draw a token. They share their blocks: what they compute is nobody's."""
    blocks = range(num_blocks)
    tokens = [0] * num_tokens
    return StepPlan(
        [Row(rid, tokens, 0, blocks, SAMPLED, tokens, num_tokens) for rid in range(num_rows)]
    )


def measure_peak(device: Device, runner: BaseRunner, plan: StepPlan) -> int:
    """Bytes that a step takes while it runs."""
    runner.run(plan)  # compiles kernels; libraries set up what they keep
    with device.measure_peak() as peak:
        runner.run(plan)
    return peak.num_bytes
