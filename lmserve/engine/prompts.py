"""What rows tell of their prompts, computed from hidden states (`prompt_outputs` says what)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from lmserve.engine.plan import Row, StepResult
from lmserve.engine.sampling.logprobs import tell
from lmserve.models.base import Model

NOT_FINITE = "the model's output is not finite"
SLICE_BYTES = 16 * 2**20  # of logits in float32; there are a few such tensors at a time


def read_prompts(
    model: Model,
    rows: Sequence[Row],
    hidden: torch.Tensor,  # (T, hidden): of these rows, one after another
    result: StepResult,  # added to
) -> None:
    places: list[int] = []  # in `hidden`, of all that is scored
    scored: list[tuple[Row, int]] = []  # and the token that comes there
    first = 0
    for row in rows:
        if row.prompt is not None:
            at = first - row.start  # where position 0 would be
            pooled = row.prompt.pooled
            if pooled:
                states = model.normed(hidden[at + pooled.start : at + pooled.stop])
                result.pooled[row.rid] = states.double().sum(0).cpu().numpy()
            places += [at + token - 1 for token in row.prompt.scored]
            scored += [(row, row.history[token]) for token in row.prompt.scored]
        first += len(row.token_ids)
    size = max(1, SLICE_BYTES // (4 * model.info.vocab_size))
    for start in range(0, len(places), size):
        index = torch.tensor(places[start : start + size], device=hidden.device)
        _score(model, hidden.index_select(0, index), scored[start : start + size], result)


def _score(
    model: Model, hidden: torch.Tensor, scored: Sequence[tuple[Row, int]], result: StepResult
) -> None:
    logprobs = model.logits(hidden).float().log_softmax(-1)
    nums_top = [row.prompt.num_top if row.prompt else 0 for row, _ in scored]
    told = tell(logprobs, [token for _, token in scored], nums_top)
    for (row, _), each in zip(scored, told, strict=True):
        result.prompt_logprobs.setdefault(row.rid, []).append(each)
        if not math.isfinite(each.logprob):
            result.errors[row.rid] = NOT_FINITE
