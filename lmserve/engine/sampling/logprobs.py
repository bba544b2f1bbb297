"""Log probabilities: those of the model's own logits, before anything is done to them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lmserve.engine.plan import Row
from lmserve.messages import TokenLogprob

GROUP = 64  # tokens; the likeliest are looked for in the likeliest groups alone


class AskedLogprobs:
    """Of the rows that ask, read before the logits are changed, told when a token is chosen."""

    def __init__(self, logits: torch.Tensor, rows: Sequence[Row], asked: list[int]):
        self._asked = asked
        self._nums_top = [_num_top(rows[at]) for at in asked]
        part = logits if len(asked) == len(rows) else logits[asked]
        self._logprobs = part.log_softmax(-1)

    @staticmethod
    def of(logits: torch.Tensor, rows: Sequence[Row]) -> AskedLogprobs | None:
        asked = [at for at, row in enumerate(rows) if _asks(row)]
        return AskedLogprobs(logits, rows, asked) if asked else None

    def tell(self, tokens: Sequence[int | None]) -> dict[int, TokenLogprob]:
        """By the row's place; `tokens` are those of all rows."""
        chosen = [tokens[at] or 0 for at in self._asked]
        told = tell(self._logprobs, chosen, self._nums_top)
        return dict(zip(self._asked, told, strict=True))


def tell(
    logprobs: torch.Tensor, token_ids: Sequence[int], nums_top: Sequence[int]
) -> list[TokenLogprob]:
    """Of one token in each row (rows, vocab), with so many of the likeliest."""
    index = torch.tensor(token_ids, device=logprobs.device)[:, None]
    chosen = logprobs.gather(1, index).squeeze(1).tolist()
    most = min(max(nums_top), logprobs.shape[1])
    if most == 0:
        return [TokenLogprob(*each) for each in zip(token_ids, chosen, strict=True)]
    values, tokens = _likeliest(logprobs, most)
    top = zip(tokens.tolist(), values.tolist(), nums_top, strict=True)
    return [
        TokenLogprob(token_id, logprob, ids[:num], logs[:num])
        for token_id, logprob, (ids, logs, num) in zip(token_ids, chosen, top, strict=True)
    ]


def _likeliest(logprobs: torch.Tensor, num: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A topk that sorts little: no token of the `num` likeliest is in another group than the
    `num` with the likeliest members."""
    num_rows, vocab_size = logprobs.shape
    whole = vocab_size - vocab_size % GROUP
    if num * GROUP * 4 > whole:
        top = logprobs.topk(num, dim=-1)
        return top.values, top.indices
    groups = logprobs[:, :whole].unflatten(1, (-1, GROUP))
    best = groups.amax(-1).topk(num, dim=-1).indices
    within = torch.arange(GROUP, device=logprobs.device)
    places = (best[:, :, None] * GROUP + within).flatten(1)
    rest = torch.arange(whole, vocab_size, device=logprobs.device).expand(num_rows, -1)
    places = torch.cat((places, rest), dim=1)
    top = logprobs.gather(1, places).topk(num, dim=-1)
    return top.values, places.gather(1, top.indices)


def _asks(row: Row) -> bool:
    return row.sampling is not None and row.sampling.logprobs is not None


def _num_top(row: Row) -> int:
    assert row.sampling is not None and row.sampling.logprobs is not None
    return row.sampling.logprobs
