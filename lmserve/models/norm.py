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
        if x.is_cuda:
            return F.rms_norm(x, x.shape[-1:], eps=self.eps).mul_(self.weight)
        # torch's own is these steps on CPU too, with more dispatches
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        factor = norm.square_().mul_(1 / x.shape[-1]).add_(self.eps).rsqrt_()
        return (x * factor).to(x.dtype).mul_(self.weight)
