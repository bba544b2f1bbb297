"""Functions of single elements whose bits do not depend on the others, when deterministic.

Torch computes in vectors, and what is left over at the end of a thread's share one by one, in
another way. So deterministic shares are computed by one thread each, and begin and end with a row
or a whole vector.
"""

from __future__ import annotations

import torch

GRAIN = 24576  # elements that torch computes in one thread, whatever the function
VECTOR = 64  # elements in the widest step of its vector loops


def rows_of_a_share(width: int) -> int:
    return max(1, GRAIN // width) if width % VECTOR == 0 else 1


def softcap_(x: torch.Tensor, cap: float, deterministic: bool) -> torch.Tensor:
    """cap * tanh(x / cap), in place."""
    if not deterministic:
        return x.div_(cap).tanh_().mul_(cap)
    rows = x.view(-1, x.shape[-1])
    for share in rows.split(rows_of_a_share(x.shape[-1])):
        share.div_(cap).tanh_().mul_(cap)
    return x
