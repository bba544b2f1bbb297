"""From a plan to tensors."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from lmserve.attention.base import AttentionBatch
from lmserve.device.base import Numbers
from lmserve.engine.plan import StepPlan

Upload = Callable[[Sequence[Numbers]], list[torch.Tensor]]


@dataclass(frozen=True, slots=True)
class StepInputs:
    """T tokens, the rows one after another; S tokens are drawn."""

    token_ids: torch.Tensor  # (T)
    positions: torch.Tensor  # (T)
    batch: AttentionBatch
    sample: torch.Tensor  # (S): after which of the T


def build_inputs(plan: StepPlan, device: torch.device, upload: Upload | None = None) -> StepInputs:
    """`upload` brings arrays to a device that nobody waits for.

    Plain loops: what numpy needs to begin with takes longer than all of a decode step's."""
    rows = plan.rows
    lens = [len(row.token_ids) for row in rows]
    batch = AttentionBatch([row.start for row in rows], lens, [row.blocks for row in rows])
    token_ids, positions, sample = array("q"), array("q"), array("q")
    for row, end in zip(rows, accumulate(lens), strict=True):
        token_ids.extend(row.token_ids)
        positions.extend(range(row.start, row.context_len))
        if row.sampling is not None:
            sample.extend(range(end - 1 - row.num_proposed, end))
    arrays = (token_ids, positions, sample)
    if upload is None:
        tensors = [_tensor(numbers, device) for numbers in arrays]
    else:
        tensors = upload(arrays)
    return StepInputs(tensors[0], tensors[1], batch, tensors[2])


def _tensor(numbers: array[int], device: torch.device) -> torch.Tensor:
    if not numbers:
        return torch.empty(0, dtype=torch.int64, device=device)
    return torch.frombuffer(numbers, dtype=torch.int64).to(device)
