"""From a plan to tensors."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch

from lmserve.attention.base import AttentionBatch, token_positions
from lmserve.engine.plan import StepPlan


@dataclass(frozen=True, slots=True)
class StepInputs:
    """T tokens, the rows one after another; S rows sample."""

    token_ids: torch.Tensor  # (T)
    positions: torch.Tensor  # (T)
    batch: AttentionBatch
    sample: torch.Tensor  # (S): where their last tokens are


def build_inputs(plan: StepPlan, device: torch.device) -> StepInputs:
    rows = plan.rows
    lens = [len(row.token_ids) for row in rows]
    batch = AttentionBatch([row.start for row in rows], lens, [row.blocks for row in rows])
    token_ids = np.fromiter(
        chain.from_iterable(row.token_ids for row in rows), dtype=np.int64, count=sum(lens)
    )
    ends = np.cumsum(np.asarray(lens, dtype=np.int64)) - 1
    samples = np.asarray([row.sampling is not None for row in rows])
    return StepInputs(
        token_ids=torch.from_numpy(token_ids).to(device),
        positions=torch.from_numpy(token_positions(batch)).to(device),
        batch=batch,
        sample=torch.from_numpy(ends[samples]).to(device),
    )
