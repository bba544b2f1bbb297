"""Where the time of a decode step goes: a trace of some steps at each number of rows, kernel by
kernel, and the gaps in which the device has nothing to do."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from bench.gpu.engine import settings_of
from bench.gpu.options import Options
from bench.gpu.record import Record
from bench.gpu.rows import prompts
from bench.gpu.shapes import vocab_size, write_model
from bench.gpu.spans import Span, longest, per_step
from lmserve.engine.core import EngineCore
from lmserve.messages import Abort, Submit, pack_ids
from lmserve.sampling import SamplingParams

ROWS, STEPS, SETTLE = (1, 32, 256), 50, 40  # steps before: graphs are captured meanwhile
TINY_ROWS, TINY_STEPS, TINY_SETTLE = (1, 3), 3, 2
PROMPT_TOKENS = 128


def measure(options: Options, record: Record, *, shape: str) -> None:
    model = write_model(Path(options.models), shape)
    core = EngineCore(settings_of(model, options))
    core.load(lambda stage: None)
    rid = 0
    try:
        for rows in TINY_ROWS if options.tiny else ROWS:
            with record.attempt(f"{rows} rows"):
                figures = of_decoding(core, options, record, rid, rows, shape)
                record.figure(f"{rows} rows", figures)
            rid += rows
    finally:
        core.close()


def of_decoding(
    core: EngineCore, options: Options, record: Record, rid: int, rows: int, shape: str
) -> dict[str, Any]:
    steps, settle = (TINY_STEPS, TINY_SETTLE) if options.tiny else (STEPS, SETTLE)
    length = 8 if options.tiny else PROMPT_TOKENS
    # more than is run: all rows are there from first to last
    sampling = SamplingParams(temperature=0.0, max_tokens=3 * (steps + settle), ignore_eos=True)
    asked = prompts(rows, length, vocab_size(shape))
    core.handle([Submit(rid + at, pack_ids(ids), sampling) for at, ids in enumerate(asked)])
    _decode_until_all_run(core, rows)
    _settle(core, settle)
    _wait(options)
    began_s = time.perf_counter()
    _step(core, steps)
    _wait(options)
    step_us = (time.perf_counter() - began_s) * 1e6 / steps
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if options.cuda else [])
    with profile(activities=activities) as traced:
        _step(core, steps)
        _wait(options)
    traced.export_chrome_trace(str(options.file(f"trace-{shape}-{rows}-rows")) + ".gz")
    core.handle([Abort(list(range(rid, rid + rows)))])
    while core.has_work():
        core.step()
    return {"step_us": round(step_us, 1), **_told(traced, steps, options)}


def _decode_until_all_run(core: EngineCore, rows: int) -> None:
    """Until each has its first token."""
    begun: set[int] = set()
    while len(begun) < rows:
        begun |= {output.rid for output in core.step().outputs if output.token_ids}


def _settle(core: EngineCore, count: int) -> None:
    """The graphs of such steps are captured meanwhile."""
    for _ in range(count):
        if core.has_chores():
            core.do_chores()
        core.step()


def _step(core: EngineCore, count: int) -> None:
    for _ in range(count):
        core.step()


def _wait(options: Options) -> None:
    if options.cuda:
        torch.cuda.synchronize()


def _told(traced: profile, steps: int, options: Options) -> dict[str, Any]:
    if options.cuda:
        spans = [
            Span(event.time_range.start, event.time_range.end, event.name)
            for event in traced.events() or ()
            if event.device_type.name == "CUDA"
        ]
        return per_step(spans, steps)
    # only names: the host is no device whose gaps mean anything
    ops = {each.key: (each.self_cpu_time_total, each.count) for each in traced.key_averages()}
    return {"kernels": longest(ops, steps)}
