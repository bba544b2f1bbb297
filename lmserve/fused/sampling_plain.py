"""The twin of the sampling kernels, in plain torch: it sorts."""

from __future__ import annotations

from typing import ClassVar

import torch

from lmserve.fused.sampling_base import (
    LARGEST,
    MAX_COUNT,
    ONE,
    Chosen,
    Column,
    SamplingOps,
    Settings,
)

INF = float("inf")


class PlainSampling(SamplingOps):
    name: ClassVar[str] = "twins"

    def likeliest(self, logits: torch.Tensor) -> Chosen:
        finite = logits.isfinite().all(-1)
        return Chosen(torch.where(finite, logits.argmax(-1), 0), finite, finite)

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
        numbers = settings.numbers.index_select(0, slots)
        table = settings.table.index_select(0, slots)
        logits = logits.float()
        finite = (logits.isfinite() | (logits == -INF) if banned else logits.isfinite()).all(-1)
        logits = torch.where(finite[:, None], logits, 0.0)
        counts = settings.counts
        if counts is not None:
            logits = penalise(logits, counts.index_select(0, slots), numbers)
        best, likeliest = logits.max(-1)
        alive = best > -INF
        uniforms = uniform(table[:, Column.STREAM], indices)
        drawn = _draw(logits, torch.where(alive, best, 0.0), table, numbers, uniforms)
        tokens = torch.where(numbers[:, Column.TEMPERATURE] > 0, drawn, likeliest)
        alive &= finite
        tokens = torch.where(alive, tokens, 0)
        if counts is not None and counting:
            count(counts, slots, tokens, alive & (table[:, Column.PENALISED] > 0))
        return Chosen(tokens, finite, alive)


def penalise(
    logits: torch.Tensor,  # (B, V) float32; a banned one stays so
    counts: torch.Tensor,  # (B, V)
    numbers: torch.Tensor,  # (B, columns) float64
) -> torch.Tensor:
    """Repetition, of prompt and output; then presence and frequency, of the output."""
    repetition, presence, frequency = (
        numbers[:, each, None].float()
        for each in (Column.REPETITION, Column.PRESENCE, Column.FREQUENCY)
    )
    changed = torch.where(logits > 0, logits / repetition, logits * repetition)
    changed = changed - torch.where(counts > 0, presence + frequency * counts, 0.0)
    # however extreme the penalty, a logit stays a number
    changed = changed.clamp(-LARGEST, LARGEST)
    return torch.where((counts != 0) & (logits > -INF), changed, logits)


def count(
    counts: torch.Tensor, slots: torch.Tensor, tokens: torch.Tensor, which: torch.Tensor
) -> None:
    """One more of each of these tokens in its slot."""
    before = counts[slots, tokens]
    after = (before.clamp(min=0, max=MAX_COUNT - 1) + 1).to(counts.dtype)
    counts.index_put_((slots, tokens), torch.where(which, after, before))


def uniform(stream: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """As `sampler.uniform`, of int64 that wraps: float64 in [0, 1)."""
    mixed = _mix(stream + (index + 1) * -0x61C8864680B583EB)
    return _shift(mixed, 16).double() * 2.0**-48


def weights_of(logits: torch.Tensor, best: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """In ONEths of the likeliest's: (B, V) int64. `temperature` is float32, above zero."""
    return (((logits - best[:, None]) / temperature[:, None]).exp() * ONE).long()


def kept_tokens(
    weights: torch.Tensor,  # (B, V) int64, in their order: none is smaller than the next
    table: torch.Tensor,
    numbers: torch.Tensor,
) -> torch.Tensor:
    """(B, V) bool, in that order: what top_k, then min_p, then top_p leave."""
    rank = torch.arange(weights.shape[1], device=weights.device)
    top_k = table[:, Column.TOP_K, None]
    kept = (rank < top_k) | (top_k == 0)
    kept &= weights >= table[:, Column.MIN_WEIGHT, None]
    cumulative = (weights * kept).cumsum(-1)
    total, top_p = cumulative[:, -1:], numbers[:, Column.TOP_P, None]
    share = torch.minimum((total * top_p).ceil().long(), total)
    kept &= cumulative - weights < torch.where(top_p < 1, share, total)
    kept[:, 0] = True
    return kept


def _draw(
    logits: torch.Tensor,
    best: torch.Tensor,
    table: torch.Tensor,
    numbers: torch.Tensor,
    uniforms: torch.Tensor,
) -> torch.Tensor:
    temperature = numbers[:, Column.TEMPERATURE].float()
    temperature = torch.where(temperature > 0, temperature, 1.0)
    weights = weights_of(logits, best, temperature)
    order = logits.sort(dim=-1, descending=True, stable=True).indices
    ordered = weights.gather(1, order)
    kept = kept_tokens(ordered, table, numbers)
    place = _place(ordered * kept, uniforms)
    cuts = (table[:, Column.TOP_K] > 0) | (table[:, Column.MIN_WEIGHT] > 0)
    cuts |= numbers[:, Column.TOP_P] < 1
    return torch.where(cuts, order.gather(1, place[:, None])[:, 0], _place(weights, uniforms))


def _place(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """(B): where a uniform number falls in rows of weights."""
    cumulative = weights.cumsum(-1)
    target = (cumulative[:, -1].double() * uniforms).long()
    place = torch.searchsorted(cumulative, target[:, None], right=True)[:, 0]
    return place.clamp(max=weights.shape[1] - 1)


def _mix(z: torch.Tensor) -> torch.Tensor:
    """splitmix64's."""
    z = (z ^ _shift(z, 30)) * -0x40A7B892E31B1A47
    z = (z ^ _shift(z, 27)) * -0x6B2FB644ECCEEE15
    return z ^ _shift(z, 31)


def _shift(z: torch.Tensor, num: int) -> torch.Tensor:
    """To the right, as of unsigned numbers."""
    return (z >> num) & (2 ** (64 - num) - 1)
