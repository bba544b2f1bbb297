"""RMS norm."""

from __future__ import annotations

import torch
import torch.nn.functional as F


class RMSNorm:
    """Over the last dimension. The weight may be a table, one line for each head."""

    def __init__(self, weight: torch.Tensor, eps: float):
        self.weight = weight
        self.eps = eps

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, x.shape[-1:], eps=self.eps).mul_(self.weight)
