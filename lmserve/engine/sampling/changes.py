"""What is done to the logits before a token is drawn: biases, then penalties, then bans."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lmserve.engine.plan import Row
from lmserve.sampling import SamplingParams

LARGEST = 1e30  # a logit


def change(
    logits: torch.Tensor,  # (rows, vocab), written to
    rows: Sequence[Row],
    params: Sequence[SamplingParams],
    masks: torch.Tensor | None,  # (rows, vocab / 32), int32: a bit for each token that may come
) -> bool:
    """Says whether any token was banned."""
    _bias(logits, rows)
    _penalise(logits, rows, params)
    banned = _ban(logits, rows)
    allowed = [at for at, row in enumerate(rows) if row.rules and row.rules.allowed is not None]
    for at in allowed:
        rules = rows[at].rules
        assert rules is not None
        keep_allowed(logits[at : at + 1], torch.from_numpy(rules.allowed)[None])
    if masks is not None:
        keep_allowed(logits, masks)
    return banned or bool(allowed) or masks is not None


def changes(rows: Sequence[Row], params: Sequence[SamplingParams]) -> bool:
    """Whether, without masks, there is anything to change."""
    return any(row.rules or row.banned_ids for row in rows) or any(
        each.penalised for each in params
    )


def keep_allowed(logits: torch.Tensor, bits: torch.Tensor) -> None:
    """Leaves the tokens whose bit is set; those for which there is none are not."""
    vocab_size = logits.shape[1]
    if bits.shape[1] * 32 < vocab_size:
        bits = torch.nn.functional.pad(bits, (0, -(-vocab_size // 32) - bits.shape[1]))
    banned: torch.Tensor
    if logits.device.type == "cpu":
        codes = (~bits).contiguous().numpy().view(np.uint8)
        banned = torch.from_numpy(np.unpackbits(codes, axis=1, bitorder="little")).view(torch.bool)
    else:
        places = torch.arange(32, dtype=torch.int32, device=logits.device)
        bits = bits.to(logits.device, non_blocking=True)
        banned = ((bits[:, :, None] >> places) & 1).flatten(1) == 0
    logits.masked_fill_(banned[:, :vocab_size], -torch.inf)


def _bias(logits: torch.Tensor, rows: Sequence[Row]) -> None:
    biases = [
        (index, token, bias)
        for index, row in enumerate(rows)
        if row.rules is not None
        for token, bias in row.rules.bias
    ]
    if biases:
        row, token, bias = (
            torch.tensor(each, device=logits.device) for each in zip(*biases, strict=True)
        )
        logits.index_put_((row, token), bias.float(), accumulate=True)


def _penalise(logits: torch.Tensor, rows: Sequence[Row], params: Sequence[SamplingParams]) -> None:
    penalised = [index for index, each in enumerate(params) if each.penalised]
    if not penalised:
        return
    parts = [count_history(rows[index], logits.shape[1]) for index in penalised]
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


def count_history(row: Row, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of prompt and output, and how often each is in the output."""
    history = np.asarray(row.history, dtype=np.int64)
    history = np.where(history < vocab_size, history, 0)
    tokens, place = np.unique(history, return_inverse=True)
    counts = np.bincount(place[row.num_prompt_tokens :], minlength=len(tokens))
    return tokens, counts


def _ban(logits: torch.Tensor, rows: Sequence[Row]) -> bool:
    pairs = [(index, token) for index, row in enumerate(rows) for token in banned_tokens(row)]
    if pairs:
        index = torch.tensor(pairs, device=logits.device)
        logits[index[:, 0], index[:, 1]] = -torch.inf
    return bool(pairs)


def banned_tokens(row: Row) -> Sequence[int]:
    if row.rules is None:
        return row.banned_ids
    return [*row.banned_ids, *row.rules.banned_after(row.history)]
