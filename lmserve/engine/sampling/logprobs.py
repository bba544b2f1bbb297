"""Log probabilities: those of the model's own logits, before anything is done to them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lmserve.device.base import Device
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


class DeviceLogprobs:
    """Of the rows that ask, without a wait: begun beside the draw, finished when it is read."""

    def __init__(self, rows: Sequence[Row], asked: list[int]):
        self._asked = asked
        self._nums_top = [_num_top(rows[at]) for at in asked]

    @staticmethod
    def of(rows: Sequence[Row]) -> DeviceLogprobs | None:
        asked = [at for at, row in enumerate(rows) if _asks(row)]
        return DeviceLogprobs(rows, asked) if asked else None

    @torch.inference_mode()
    def begin(
        self, logits: torch.Tensor, tokens: torch.Tensor, device: Device
    ) -> list[torch.Tensor]:
        """What is to be fetched. The logits are the model's own, a row for each of the rows or
        more; `tokens` are those drawn."""
        if len(self._asked) < len(logits):
            index = device.upload(np.array(self._asked))
            logits, tokens = logits.index_select(0, index), tokens.index_select(0, index)
        return _measure(logits.float().log_softmax(-1), tokens, max(self._nums_top))

    def finish(self, fetched: Sequence[torch.Tensor]) -> dict[int, TokenLogprob]:
        """By the row's place."""
        return dict(zip(self._asked, _told(fetched, self._nums_top), strict=True))


def tell(
    logprobs: torch.Tensor, token_ids: Sequence[int], nums_top: Sequence[int]
) -> list[TokenLogprob]:
    """Of one token in each row (rows, vocab), with so many of the likeliest."""
    tokens = torch.tensor(token_ids, device=logprobs.device)
    return _told(_measure(logprobs, tokens, max(nums_top)), nums_top)


def _measure(logprobs: torch.Tensor, tokens: torch.Tensor, num_top: int) -> list[torch.Tensor]:
    """The tokens and theirs; the likeliest and theirs."""
    measured = [tokens, logprobs.gather(1, tokens[:, None]).squeeze(1)]
    num_top = min(num_top, logprobs.shape[1])
    if num_top > 0:
        values, likeliest = _likeliest(logprobs, num_top)
        measured += [likeliest, values]
    return measured


def _told(measured: Sequence[torch.Tensor], nums_top: Sequence[int]) -> list[TokenLogprob]:
    tokens, chosen, *top = (each.tolist() for each in measured)
    if not top:
        return [TokenLogprob(*each) for each in zip(tokens, chosen, strict=True)]
    return [
        TokenLogprob(token_id, logprob, ids[:num], logs[:num])
        for token_id, logprob, ids, logs, num in zip(tokens, chosen, *top, nums_top, strict=True)
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
