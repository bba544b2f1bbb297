"""Chooses tokens: penalties, then temperature, min_p, top_k, top_p, as vLLM orders them.

One uniform number a token, a function of the request's seed and the token's index alone, is
looked up in the cumulative distribution. So a seeded answer does not depend on the batch, on
preemption or on restarts, and every step below works row by row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lmserve.engine.plan import Row
from lmserve.sampling import SamplingParams

CANDIDATES = 1024  # tokens sorted; a row whose cut lies beyond them has all sorted
LARGEST = 1e30  # a logit
MASK64 = 2**64 - 1


def sample(logits: torch.Tensor, rows: Sequence[Row]) -> list[int]:
    """One token for each row; `logits` (rows, vocab) is float32 and may be written to."""
    params = [_params(row) for row in rows]
    _penalise(logits, rows, params)
    _ban(logits, rows)
    chosen = logits.argmax(-1)
    free = [index for index, each in enumerate(params) if not each.greedy]
    if free:
        index = torch.tensor(free, device=logits.device)
        drawn = [uniform(params[i].seed, rows[i].context_len) for i in free]
        uniforms = torch.tensor(drawn, dtype=torch.float64, device=logits.device)
        chosen[index] = _draw(logits[index], [params[i] for i in free], uniforms)
    tokens: list[int] = chosen.tolist()
    return tokens


def uniform(seed: int, index: int) -> float:
    """In [0, 1): splitmix64 of the seed's own stream, at `index`."""
    state = (_mix(seed & MASK64) + (index + 1) * 0x9E3779B97F4A7C15) & MASK64
    return float((_mix(state) >> 16) * 2.0**-48)


def _mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK64
    return z ^ (z >> 31)


def _params(row: Row) -> SamplingParams:
    assert row.sampling is not None, "only rows that sample come here"
    return row.sampling


# --- changes to the logits -------------------------------------------------------------------


def _penalise(logits: torch.Tensor, rows: Sequence[Row], params: Sequence[SamplingParams]) -> None:
    penalised = [index for index, each in enumerate(params) if each.penalised]
    if not penalised:
        return
    parts = [_counts(rows[index], logits.shape[1]) for index in penalised]
    lens = [len(tokens) for tokens, _ in parts]

    def column(values: Sequence[float] | Sequence[int]) -> torch.Tensor:
        return torch.from_numpy(np.repeat(np.asarray(values), lens)).to(logits.device)

    row = column(penalised)
    token = torch.from_numpy(np.concatenate([tokens for tokens, _ in parts])).to(logits.device)
    count = torch.from_numpy(np.concatenate([counts for _, counts in parts])).to(logits.device)
    repetition = column([params[index].repetition_penalty for index in penalised])
    presence = column([params[index].presence_penalty for index in penalised])
    frequency = column([params[index].frequency_penalty for index in penalised])
    value = logits[row, token].double()
    value = torch.where(value > 0, value / repetition, value * repetition)
    value -= presence * (count > 0) + frequency * count
    # however extreme the penalty, a logit stays a number
    logits[row, token] = value.clamp_(-LARGEST, LARGEST).float()


def _counts(row: Row, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of prompt and output, and how often each is in the output."""
    history = np.asarray(row.history, dtype=np.int64)
    history = np.where(history < vocab_size, history, 0)
    tokens, place = np.unique(history, return_inverse=True)
    counts = np.bincount(place[row.num_prompt_tokens :], minlength=len(tokens))
    return tokens, counts


def _ban(logits: torch.Tensor, rows: Sequence[Row]) -> None:
    pairs = [(index, token) for index, row in enumerate(rows) for token in row.banned_ids]
    if pairs:
        index = torch.tensor(pairs, device=logits.device)
        logits[index[:, 0], index[:, 1]] = -torch.inf


# --- drawing ---------------------------------------------------------------------------------


def _draw(
    logits: torch.Tensor, params: Sequence[SamplingParams], uniforms: torch.Tensor
) -> torch.Tensor:
    device = logits.device
    temperature = torch.tensor([each.temperature for each in params], device=device)[:, None]
    logits.sub_(logits.amax(-1, keepdim=True)).div_(temperature)  # finite at any temperature
    probabilities = logits.softmax(-1)
    cut = torch.tensor([_cuts(each) for each in params], device=device)
    chosen = torch.empty(len(params), dtype=torch.int64, device=device)
    for mask, draw in ((cut, _draw_cut), (~cut, _draw_any)):
        index = mask.nonzero().squeeze(1)
        if len(index):
            which = [params[i] for i in index.tolist()]
            chosen[index] = draw(probabilities[index], which, uniforms[index])
    return chosen


def _cuts(params: SamplingParams) -> bool:
    return params.top_k > 0 or params.top_p < 1.0 or params.min_p > 0.0


def _draw_any(
    probabilities: torch.Tensor, params: Sequence[SamplingParams], uniforms: torch.Tensor
) -> torch.Tensor:
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)
    target = uniforms[:, None] * cumulative[:, -1:]
    place = torch.searchsorted(cumulative, target, right=True).squeeze(1)
    return place.clamp_(max=probabilities.shape[1] - 1)  # rounding may reach the end


def _draw_cut(
    probabilities: torch.Tensor, params: Sequence[SamplingParams], uniforms: torch.Tensor
) -> torch.Tensor:
    """From the most probable tokens, sorted; from all of them where those are not enough."""
    vocab_size = probabilities.shape[1]
    chosen, enough = _draw_sorted(probabilities, min(CANDIDATES, vocab_size), params, uniforms)
    again = (~enough).nonzero().squeeze(1)
    if len(again):
        which = [params[i] for i in again.tolist()]
        all_sorted = _draw_sorted(probabilities[again], vocab_size, which, uniforms[again])
        chosen[again] = all_sorted[0]
    return chosen


def _draw_sorted(
    probabilities: torch.Tensor,
    size: int,
    params: Sequence[SamplingParams],
    uniforms: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens drawn from the `size` most probable, and whether those held each row's cut."""

    def column(values: Sequence[float] | Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, device=probabilities.device)[:, None]

    vocab_size = probabilities.shape[1]
    values, tokens = _most_probable(probabilities, size)
    values = values.double()
    rank = torch.arange(size, device=values.device)
    top_k = column([each.top_k if each.top_k > 0 else vocab_size for each in params])
    top_p = column([each.top_p for each in params]).double()
    min_p = column([each.min_p for each in params]).double()
    kept = (rank < top_k) & (values >= min_p * values[:, :1])
    kept[:, 0] = True
    cumulative = (values * kept).cumsum(-1)
    # top_p is a share of what top_k and min_p left: of 1, where neither is on
    complete = (top_k <= size) | ~kept[:, -1:] | (size == vocab_size)
    total = torch.where(complete, cumulative[:, -1:], 1.0)
    kept &= cumulative - values < top_p * total
    kept[:, 0] = True
    num_kept = kept.sum(-1, keepdim=True)
    mass = cumulative.gather(1, num_kept - 1)
    plain = (top_k == vocab_size) & (min_p == 0)
    enough = complete | (plain & (num_kept < size))
    place = torch.searchsorted(cumulative, uniforms[:, None] * mass, right=True)
    place = torch.minimum(place, num_kept - 1)
    return tokens.gather(1, place).squeeze(1), enough.squeeze(1)


def _most_probable(probabilities: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    if size == probabilities.shape[1]:
        ordered = probabilities.sort(dim=-1, descending=True, stable=True)
        return ordered.values, ordered.indices
    top = probabilities.topk(size, dim=-1)
    return top.values, top.indices
