"""RMS norm."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from lmserve.models.linear import Linear


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


class ZeroCentredNorm(RMSNorm):
    """RMS norm whose factor is 1 + weight, applied before rounding to the model's dtype."""

    def __init__(self, weight: torch.Tensor, eps: float):
        super().__init__(weight.float() + 1, eps)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        factor = norm.square_().mul_(1 / x.shape[-1]).add_(self.eps).rsqrt_()
        return (x * factor).mul_(self.weight).to(x.dtype)


class NormedLinear:
    """A product, and a norm of what it gives."""

    def __init__(self, linear: Linear, norm: RMSNorm):
        self.linear = linear
        self.norm = norm

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.linear(x))
