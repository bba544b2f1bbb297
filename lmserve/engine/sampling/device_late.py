"""What only the host knows of a choice, brought to the device without waiting for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from lmserve.device.base import Device
from lmserve.engine.plan import Row
from lmserve.engine.sampling.changes import banned_tokens
from lmserve.fused.sampling_base import MAX_COUNT, Chosen, Settings
from lmserve.fused.sampling_plain import count


def change(
    logits: torch.Tensor,  # (B, V) float32, written to
    rows: Sequence[Row],
    masks: np.ndarray | None,
    device: Device,
) -> None:
    """Biases, and -inf for what may not come."""
    vocab_size = logits.shape[1]
    flat = logits.view(-1)
    biases = [
        (at * vocab_size + token, bias)
        for at, row in enumerate(rows)
        if row.rules is not None
        for token, bias in row.rules.bias
    ]
    if biases:
        place, bias = device.upload_together(
            [
                np.array([place for place, _ in biases]),
                np.array([bias for _, bias in biases], dtype=np.float32),
            ]
        )
        flat.index_add_(0, place, bias)
    bans = [at * vocab_size + token for at, row in enumerate(rows) for token in banned_tokens(row)]
    if bans:
        flat.index_fill_(0, device.upload(np.array(bans)), -torch.inf)
    bits = _allowed(rows, masks, vocab_size)
    if bits is not None:
        keep_allowed(logits, device.upload(bits))


def keep_allowed(logits: torch.Tensor, bits: torch.Tensor) -> None:
    """Leaves the tokens whose bit is set: `bits` (B, at least V / 8) is uint8."""
    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    allowed = ((bits[:, :, None] >> places) & 1).flatten(1)[:, : logits.shape[1]]
    logits.masked_fill_(allowed == 0, -torch.inf)


def _allowed(rows: Sequence[Row], masks: np.ndarray | None, vocab_size: int) -> np.ndarray | None:
    """(B, words * 4) uint8, a bit for each token that may come; None where all may."""
    rules = [
        (at, row.rules.allowed)
        for at, row in enumerate(rows)
        if row.rules is not None and row.rules.allowed is not None
    ]
    if masks is None and not rules:
        return None
    bits = np.full((len(rows), -(-vocab_size // 32)), -1, dtype=np.int32)
    if masks is not None:
        _keep(bits, masks)
    for at, allowed in rules:
        _keep(bits[at : at + 1], allowed[None])
    return bits.view(np.uint8)


def _keep(bits: np.ndarray, allowed: np.ndarray) -> None:
    """What `allowed` says nothing of may not come."""
    num = min(bits.shape[1], allowed.shape[1])
    bits[:, :num] &= allowed[:, :num]
    bits[:, num:] = 0


def forced(chosen: Chosen, finite: torch.Tensor, rows: Sequence[Row], device: Device) -> Chosen:
    """With the tokens that come whatever the logits."""
    tokens, alive = chosen.tokens, chosen.alive
    if any(row.forced is not None for row in rows):
        given = device.upload(np.array([-1 if row.forced is None else row.forced for row in rows]))
        tokens, alive = torch.where(given >= 0, given, tokens), alive | (given >= 0)
    alive = alive & finite
    return Chosen(torch.where(alive, tokens, 0), finite, alive)


def proposes(rows: Sequence[Row]) -> bool:
    """Whether several of these are places of one sequence."""
    return len({row.rid for row in rows}) < len(rows)


def add_proposed(settings: Settings, rows: Sequence[Row], device: Device) -> None:
    """Counts, in the place's own row, the proposed tokens before it."""
    assert settings.counts is not None
    first: dict[int, int] = {}
    added: Counter[tuple[int, int]] = Counter()
    for at, row in enumerate(rows):
        start = first.setdefault(row.rid, row.context_len)
        num = row.context_len - start
        if num and row.sampling is not None and row.sampling.penalised:
            added.update((at, token) for token in row.history[len(row.history) - num :])
    if not added:
        return
    place = np.array([at * settings.counts.shape[1] + token for at, token in added])
    index, more = device.upload_together([place, np.array(list(added.values()), dtype=np.int32)])
    flat = settings.counts.view(-1)
    sums = flat[index].clamp(min=0) + more
    flat.scatter_(0, index, sums.clamp(max=MAX_COUNT).to(flat.dtype))


def count_chosen(
    counts: torch.Tensor,
    chosen: Chosen,
    slots: torch.Tensor,
    rows: Sequence[Row],
    device: Device,
) -> None:
    """The tokens of penalised rows; those of several places are not all kept, and are counted when
    the sequence is assigned again."""
    places = Counter(row.rid for row in rows)
    which = [
        at
        for at, row in enumerate(rows)
        if row.sampling is not None and row.sampling.penalised and places[row.rid] == 1
    ]
    if which:
        at = device.upload(np.array(which))
        count(counts, slots[at], chosen.tokens[at], chosen.alive[at])
