"""Launches every kernel of sampling in every form, for `tests/kernels/compile.py`."""

from __future__ import annotations

import torch

from lmserve.fused.sampling_base import Column, Settings
from lmserve.fused.sampling_triton import TritonSampling


def everything() -> None:
    launches(151_936, torch.bfloat16, counted=False)
    launches(262_208, torch.float32, counted=True)


def launches(vocab_size: int, dtype: torch.dtype, *, counted: bool) -> None:
    ops = TritonSampling()
    logits = torch.empty((8, vocab_size), dtype=dtype, device="meta")
    slots = torch.empty(8, dtype=torch.int64, device="meta")
    table = torch.empty((9, len(Column)), dtype=torch.int64, device="meta")
    counts = torch.empty((9, vocab_size), dtype=torch.int16, device="meta") if counted else None
    ops.likeliest(logits)
    ops.draw(logits, Settings(table, counts), slots, slots)
    ops.draw(logits, Settings(table, counts), slots, slots, banned=True, counting=False)
