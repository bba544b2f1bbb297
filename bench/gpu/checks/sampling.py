"""Sampling on the device by Triton kernels against its twin in plain torch. Sums are exact in both;
an exponential may differ in its last bit, so that a draw which falls between two tokens may take
the other: seldom."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from bench.gpu.checks.kernels import dtypes
from bench.gpu.options import Options
from bench.gpu.record import Record
from lmserve.engine.sampling.device import encoded
from lmserve.fused.sampling_base import Chosen, SamplingOps, Settings, sampling_ops
from lmserve.sampling import SamplingParams

MANNERS = (
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=1.0, seed=1),
    SamplingParams(temperature=0.7, seed=2, top_p=0.9),
    SamplingParams(temperature=1.3, seed=3, top_k=40),
    SamplingParams(temperature=1.0, seed=4, min_p=0.05),
    SamplingParams(temperature=0.8, seed=5, top_p=0.95, top_k=20, min_p=0.01),
    SamplingParams(temperature=1.0, seed=6, repetition_penalty=1.3),
    SamplingParams(temperature=0.0, presence_penalty=0.7, frequency_penalty=0.2),
    SamplingParams(temperature=2.0, seed=7, top_p=0.5, frequency_penalty=-0.4),
)
SIZES = ((1, 151_936), (9, 151_936), (64, 32_000), (256, 151_936))
TINY_SIZES = ((9, 300),)
DRAWS, TINY_DRAWS = 20, 2
SELDOM = 0.005


def check(options: Options, record: Record) -> None:
    triton, twin = sampling_ops("triton"), sampling_ops("twins")
    for (rows, vocab), dtype in itertools.product(
        TINY_SIZES if options.tiny else SIZES, dtypes(options)
    ):
        name = f"{rows} rows of {vocab}, {str(dtype).removeprefix('torch.')}"
        with record.attempt(name):
            logits = _logits(rows, vocab, dtype, options.device)
            _same(f"{name}: likeliest", triton.likeliest(logits), twin.likeliest(logits), record)
            one, other = (_settings(rows, vocab, options.device) for _ in range(2))
            draws = TINY_DRAWS if options.tiny else DRAWS
            differ = sum(
                int((_drawn(triton, logits, one, draw) != _drawn(twin, logits, other, draw)).sum())
                for draw in range(draws)
            )
            total = draws * rows
            record.check(f"{name}: drawn otherwise", differ / total, SELDOM, draws=total)
            counted = _share_off(one, other)
            record.check(f"{name}: counted otherwise", counted, 2 * differ / vocab, differ=differ)
        with record.attempt(f"{name}: what is no number"):
            broken = logits.clone()
            broken[0, 5] = torch.nan
            broken[-1] = -torch.inf
            _same(f"{name}: broken", triton.likeliest(broken), twin.likeliest(broken), record)


def _logits(rows: int, vocab: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows)
    return (4 * torch.randn(rows, vocab, generator=generator)).to(device, dtype)


def _settings(rows: int, vocab: int, device: str) -> Settings:
    """Of as many slots, with tokens that came before."""
    table = np.stack([encoded(MANNERS[at % len(MANNERS)], vocab) for at in range(rows)])
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(rows, vocab, dtype=torch.int16)
    known = torch.randint(0, vocab, (rows, 100), generator=generator)
    values = torch.randint(-1, 3, known.shape, generator=generator, dtype=torch.int16)
    counts.scatter_(1, known, values)
    return Settings(torch.from_numpy(table).to(device), counts.to(device))


def _drawn(ops: SamplingOps, logits: torch.Tensor, settings: Settings, draw: int) -> torch.Tensor:
    """Each row by the settings of its slot, which are not in its order."""
    rows = len(logits)
    slots = torch.randperm(rows, generator=torch.Generator().manual_seed(draw))
    indices = torch.full((rows,), draw, dtype=torch.int64, device=logits.device)
    return ops.draw(logits, settings, slots.to(logits.device), indices).tokens


def _share_off(one: Settings, other: Settings) -> float:
    assert one.counts is not None and other.counts is not None
    return float((one.counts != other.counts).float().sum(1).max()) / one.counts.shape[1]


def _same(name: str, one: Chosen, other: Chosen, record: Record) -> None:
    """Of rows that have a token, which, and that they have."""
    alive = torch.equal(one.alive, other.alive) and torch.equal(one.finite, other.finite)
    good = one.alive & one.finite
    differ = int((one.tokens != other.tokens)[good].sum())
    record.holds(name, alive and not differ, differ=differ)
