"""A step that finds too little memory: nobody's answer is lost, and none is another for it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from bench.gpu.engine import settings_of
from bench.gpu.logs import Said
from bench.gpu.options import Options
from bench.gpu.record import Record
from bench.gpu.rows import prompts
from bench.gpu.shapes import vocab_size, write_model
from lmserve import LLM, SamplingParams
from lmserve.device.base import Device
from lmserve.device.select import device_for

RAN_OUT = "rows failed"  # a step that was then run in parts


def check(options: Options, record: Record) -> None:
    shape = options.measured[-1]
    # in float32 an answer does not depend on how a step is cut
    settings = settings_of(
        write_model(Path(options.models), shape),
        options,
        dtype="float32",
        max_step_tokens=800 if options.tiny else 4096,
        cache_max_entry_count=None if options.tiny else 0.2,
    )
    count, length, num_tokens = (8, 100, 3) if options.tiny else (16, 500, 6)
    asked = prompts(count, length, vocab_size(shape))
    sampling = SamplingParams(
        temperature=0, max_tokens=num_tokens, ignore_eos=True, detokenize=False
    )
    with LLM(settings=settings) as llm, Said("lmserve.engine", logging.WARNING) as said:

        def answers() -> list[list[int]]:
            return [answer.token_ids for answer in llm.generate(asked, sampling)]

        right = answers()
        device = device_for(torch.device(options.device))
        with device.measure_peak() as peak:
            record.holds("the same again", answers() == right)
        record.figure("peak_bytes", peak.num_bytes)
        record.holds("enough at first", not said.lines(RAN_OUT))
        with little_memory(device, peak.num_bytes // 4):
            found = answers()
        record.figure("told", said.lines(""))
        record.holds("memory ran out", bool(said.lines(RAN_OUT)))
        record.holds("the same with a quarter of it", found == right)
        record.holds("the same after it", answers() == right)


@contextmanager
def little_memory(device: Device, num_bytes: int) -> Iterator[None]:
    """What is taken beyond what is held now is at most so much."""
    if device.torch_device.type != "cuda":
        from lmserve.device.host import HostDevice

        assert isinstance(device, HostDevice)
        before, device.room_bytes = device.room_bytes, num_bytes
        try:
            with device.limited():
                yield
        finally:
            device.room_bytes = before
        return
    device.synchronize()
    device.release_cached()
    total = torch.cuda.get_device_properties(device.torch_device).total_memory
    held = torch.cuda.memory_reserved(device.torch_device)
    torch.cuda.set_per_process_memory_fraction((held + num_bytes) / total, device.torch_device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device.torch_device)
