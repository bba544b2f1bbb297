"""Sampling by Triton kernels. (Importing this imports Triton.)"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import triton

from lmserve.device.launches import launch
from lmserve.fused.sampling_base import Chosen, SamplingOps, Settings
from lmserve.fused.sampling_draw import draw_kernel
from lmserve.fused.sampling_kernels import (
    likeliest_kernel,
    maxima_kernel,
    settle_kernel,
    weigh_kernel,
)

WIDE = 2**17  # a vocabulary that is cut into larger groups


@dataclass(frozen=True, slots=True)
class Sizes:
    """Powers of two, but `num_wanted`."""

    chunk: int = 2048  # tokens of a program that sees a part of a row
    step: int = 4096  # tokens at a time where a program sees a whole row
    group: int = 32  # tokens of which the likeliest is noted
    num_wanted: int = 1024  # groups with a token that is gathered, in the whole vocabulary
    capacity: int = 4096  # tokens gathered at most

    @staticmethod
    def of(vocab_size: int) -> Sizes:
        return Sizes(group=32 if vocab_size <= WIDE else 64)


class TritonSampling(SamplingOps):
    """`sizes` change nothing but speed."""

    name: ClassVar[str] = "triton"

    def __init__(self, sizes: Sizes | None = None):
        self._sizes = sizes

    def likeliest(self, logits: torch.Tensor) -> Chosen:
        sizes = self._sizes or Sizes.of(logits.shape[1])
        maxima = _maxima(logits, sizes)
        num_rows = len(logits)
        tokens = logits.new_empty(num_rows, dtype=torch.int64)
        finite = logits.new_empty(num_rows, dtype=torch.bool)
        launch_likeliest(logits, maxima, tokens, finite, sizes)
        return Chosen(tokens, finite, finite)

    def draw(
        self,
        logits: torch.Tensor,
        settings: Settings,
        slots: torch.Tensor,
        indices: torch.Tensor,
        *,
        banned: bool = False,
        counting: bool = True,
    ) -> Chosen:
        sizes = self._sizes or Sizes.of(logits.shape[1])
        num_rows, vocab_size = logits.shape
        chosen = Chosen(
            logits.new_empty(num_rows, dtype=torch.int64),
            logits.new_empty(num_rows, dtype=torch.bool),
            logits.new_empty(num_rows, dtype=torch.bool),
        )
        num_chunks = triton.cdiv(vocab_size, sizes.chunk)
        scratch = Scratch(
            maxima=_maxima(logits, sizes),
            bests=logits.new_empty(num_rows, dtype=torch.float32),
            floors=logits.new_empty(num_rows, dtype=torch.float32),
            masses=logits.new_empty((num_rows, num_chunks), dtype=torch.int64),
            num_gathered=logits.new_empty(num_rows, dtype=torch.int32),
            values=logits.new_empty((num_rows, sizes.capacity), dtype=torch.float32),
            indices=logits.new_empty((num_rows, sizes.capacity), dtype=torch.int32),
        )
        table, counts = settings.table, settings.counts
        launch_draw(logits, table, counts, slots, indices, chosen, scratch, sizes, banned, counting)
        return chosen


@dataclass(frozen=True, slots=True)
class Scratch:
    """Of one draw."""

    maxima: torch.Tensor  # (B, groups) float32; NaN: a logit is none
    bests: torch.Tensor  # (B) float32; NaN: the row has its token
    floors: torch.Tensor  # (B) float32: what is below is not gathered
    masses: torch.Tensor  # (B, chunks) int64
    num_gathered: torch.Tensor  # (B) int32, those that found no room too
    values: torch.Tensor  # (B, capacity) float32: logits, in any order
    indices: torch.Tensor  # (B, capacity) int32: their tokens


def _maxima(logits: torch.Tensor, sizes: Sizes) -> torch.Tensor:
    assert logits.stride(1) == 1, "a row's logits lie side by side"
    num_rows, vocab_size = logits.shape
    num_groups = triton.cdiv(vocab_size, sizes.group)
    return logits.new_empty((num_rows, num_groups), dtype=torch.float32)


@launch
def launch_likeliest(
    logits: torch.Tensor,
    maxima: torch.Tensor,
    tokens: torch.Tensor,
    finite: torch.Tensor,
    sizes: Sizes,
) -> None:
    num_rows, vocab_size = logits.shape
    num_groups = maxima.shape[1]
    maxima_kernel[(triton.cdiv(vocab_size, sizes.chunk), num_rows)](
        logits,
        logits.stride(0),
        None,
        None,
        None,
        None,
        maxima,
        vocab_size,
        num_groups,
        BANNED=False,
        COUNTED=False,
        GROUPS=sizes.chunk // sizes.group,
        GROUP=sizes.group,
        num_warps=8,
    )
    likeliest_kernel[(num_rows,)](
        logits,
        logits.stride(0),
        maxima,
        tokens,
        finite,
        vocab_size,
        num_groups,
        TILE=triton.next_power_of_2(num_groups),
        GROUP=sizes.group,
        num_warps=8,
    )


@launch
def launch_draw(
    logits: torch.Tensor,
    table: torch.Tensor,
    counts: torch.Tensor | None,
    slots: torch.Tensor,
    indices: torch.Tensor,
    chosen: Chosen,
    scratch: Scratch,
    sizes: Sizes,
    banned: bool,
    counting: bool,
) -> None:
    num_rows, vocab_size = logits.shape
    num_groups, num_chunks = scratch.maxima.shape[1], scratch.masses.shape[1]
    counted = counts is not None
    row = (logits, logits.stride(0), table, table.view(torch.float64), counts, slots)
    maxima_kernel[(num_chunks, num_rows)](
        *row,
        scratch.maxima,
        vocab_size,
        num_groups,
        BANNED=banned,
        COUNTED=counted,
        GROUPS=sizes.chunk // sizes.group,
        GROUP=sizes.group,
        num_warps=8,
    )
    settle_kernel[(num_rows,)](
        *row,
        scratch.maxima,
        chosen.tokens,
        chosen.finite,
        chosen.alive,
        scratch.bests,
        scratch.floors,
        scratch.num_gathered,
        vocab_size,
        num_groups,
        max(1, min(sizes.num_wanted, num_groups * 3 // 4)),
        COUNTED=counted,
        COUNTING=counted and counting,
        TILE=triton.next_power_of_2(num_groups),
        GROUP=sizes.group,
        num_warps=8,
    )
    weigh_kernel[(num_chunks, num_rows)](
        *row,
        scratch.bests,
        scratch.floors,
        scratch.masses,
        scratch.num_gathered,
        scratch.values,
        scratch.indices,
        vocab_size,
        num_chunks,
        COUNTED=counted,
        CHUNK=sizes.chunk,
        CAPACITY=sizes.capacity,
        num_warps=8,
    )
    draw_kernel[(num_rows,)](
        *row,
        indices,
        scratch.bests,
        scratch.floors,
        scratch.masses,
        scratch.num_gathered,
        scratch.values,
        scratch.indices,
        chosen.tokens,
        vocab_size,
        num_chunks,
        COUNTED=counted,
        COUNTING=counted and counting,
        CHUNKS=triton.next_power_of_2(num_chunks),
        CHUNK=sizes.chunk,
        STEP=sizes.step,
        CAPACITY=sizes.capacity,
        num_warps=16,
    )
