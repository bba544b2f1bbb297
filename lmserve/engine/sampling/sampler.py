"""Chooses tokens: biases, penalties and bans, then temperature, min_p, top_k, top_p, in the order
of vLLM.

One uniform number a token, a function of the request's seed and the token's index alone, is
looked up in the cumulative distribution. So a seeded answer does not depend on the batch, on
preemption or on restarts, and every step of it works row by row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lmserve.engine.plan import Row
from lmserve.engine.sampling import native
from lmserve.engine.sampling.changes import change, changes
from lmserve.engine.sampling.drawing import draw
from lmserve.native.library import Kernels
from lmserve.sampling import SamplingParams

MASK64 = 2**64 - 1


def likeliest(logits: torch.Tensor, kernels: Kernels | None) -> tuple[list[int], list[bool]]:
    """The likeliest token of each row, the first of several; and whether its logits are finite."""
    if kernels is not None:
        return native.likeliest(logits, kernels)
    # a sum is finite only where all its terms are
    return logits.argmax(-1).tolist(), logits.sum(-1).isfinite().tolist()


def sample(
    logits: torch.Tensor,
    rows: Sequence[Row],
    masks: torch.Tensor | None = None,
    likely: Sequence[int] | None = None,
    kernels: Kernels | None = None,
) -> list[int | None]:
    """A token for each row, None where no token may come; `logits` (rows, vocab) is float32 and
    may be written to. `masks` (rows, vocab / 32) is int32, with a bit for each token that may
    come: all of a row without a grammar. `likely` are the likeliest tokens, where they are
    known already; `kernels` draw, where they are there."""
    params = [_params(row) for row in rows]
    alive = [True] * len(rows)
    tokens: list[int | None]
    if likely is not None and masks is None and not changes(rows, params):
        tokens = list(likely)
    elif change(logits, rows, params, masks):
        best, index = logits.max(-1)
        alive = (best > -torch.inf).tolist()
        tokens = index.tolist()
    else:
        tokens = logits.argmax(-1).tolist()
    free = [at for at, each in enumerate(params) if alive[at] and not each.greedy]
    if free:
        drawn = [uniform(params[i].seed, rows[i].context_len) for i in free]
        part = logits if len(free) == len(rows) else logits[free]
        which = [params[i] for i in free]
        if kernels is None:
            chosen = draw(part, which, drawn)
        else:
            chosen = native.draw(part, which, drawn, kernels)
        for at, token in zip(free, chosen, strict=True):
            tokens[at] = token
    for at, row in enumerate(rows):
        if row.forced is not None:
            tokens[at] = row.forced
        elif not alive[at]:
            tokens[at] = None
    return tokens


def uniform(seed: int, index: int) -> float:
    """In [0, 1): splitmix64 of the seed's own stream, at `index`."""
    state = (stream_of(seed) + (index + 1) * 0x9E3779B97F4A7C15) & MASK64
    return float((_mix(state) >> 16) * 2.0**-48)


def stream_of(seed: int) -> int:
    """Where the seed's own stream begins: unsigned, of 64 bits."""
    return _mix(seed & MASK64)


def _mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK64
    return z ^ (z >> 31)


def _params(row: Row) -> SamplingParams:
    assert row.sampling is not None, "only rows that sample come here"
    return row.sampling
