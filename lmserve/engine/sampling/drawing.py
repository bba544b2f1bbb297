"""Draws tokens: temperature, then min_p, top_k, top_p."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lmserve.sampling import SamplingParams

CANDIDATES = (128, 1024)  # tokens sorted; a row whose cut lies beyond them has more, then all


def draw(
    logits: torch.Tensor, params: Sequence[SamplingParams], numbers: Sequence[float]
) -> list[int]:
    """A token for each row of logits, which are written to, by its uniform number."""
    device = logits.device
    uniforms = torch.tensor(numbers, dtype=torch.float64, device=device)
    temperature = torch.tensor([each.temperature for each in params], device=device)[:, None]
    logits.sub_(logits.amax(-1, keepdim=True)).div_(temperature)  # finite at any temperature
    probabilities = logits.softmax(-1)
    cut = [at for at, each in enumerate(params) if _cuts(each)]
    if not cut:
        return _draw_any(probabilities, uniforms)
    if len(cut) == len(params):
        return _draw_cut(probabilities, params, uniforms)
    rest = [at for at, each in enumerate(params) if not _cuts(each)]
    chosen = dict(zip(rest, _draw_any(probabilities[rest], uniforms[rest]), strict=True))
    which = [params[at] for at in cut]
    chosen |= zip(cut, _draw_cut(probabilities[cut], which, uniforms[cut]), strict=True)
    return [chosen[at] for at in range(len(params))]


def _cuts(params: SamplingParams) -> bool:
    return params.top_k > 0 or params.top_p < 1.0 or params.min_p > 0.0


def _draw_any(probabilities: torch.Tensor, uniforms: torch.Tensor) -> list[int]:
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)
    target = uniforms[:, None] * cumulative[:, -1:]
    place = torch.searchsorted(cumulative, target, right=True).squeeze(1)
    tokens: list[int] = place.clamp_(max=probabilities.shape[1] - 1).tolist()  # rounded to the end
    return tokens


def _draw_cut(
    probabilities: torch.Tensor, params: Sequence[SamplingParams], uniforms: torch.Tensor
) -> list[int]:
    """From the most probable tokens, sorted; from more of them where those are not enough."""
    vocab_size = probabilities.shape[1]
    chosen = [0] * len(params)
    left = list(range(len(params)))
    for size in (*CANDIDATES, vocab_size):
        tokens, enough = _draw_sorted(probabilities, min(size, vocab_size), params, uniforms)
        for at, token in zip(left, tokens.tolist(), strict=True):
            chosen[at] = token
        again = [num for num, each in enumerate(enough.tolist()) if not each]
        if not again:
            break
        left = [left[num] for num in again]
        params = [params[num] for num in again]
        probabilities, uniforms = probabilities[again], uniforms[again]
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
