"""Which attention runs, and why, in one log line."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from lmserve.attention.base import (
    AttentionBackend,
    AttentionBatch,
    AttentionOptions,
    CacheShape,
)
from lmserve.attention.cpu import CpuAttention
from lmserve.attention.sdpa import SdpaAttention
from lmserve.errors import SettingsError

log = logging.getLogger(__name__)

Build = Callable[[], AttentionBackend]


def select_attention(
    name: str, shape: CacheShape, dtype: torch.dtype, device: torch.device, deterministic: bool
) -> AttentionBackend:
    """The backend of that name, or for `auto` the fastest that passes its probe."""
    known: dict[str, Build] = {
        "cpu": lambda: CpuAttention(shape, dtype, device, deterministic),
        "sdpa": lambda: SdpaAttention(shape, dtype, device),
    }
    if name == "auto":
        name, why = _first_that_works(known)
    elif name in known:
        why = "asked for"
    else:
        raise SettingsError(f"attention {name!r} is unknown; choose auto, {', '.join(known)}")
    log.info("attention: %s on %s (%s)", name, device, why)
    return known[name]()


def _first_that_works(known: dict[str, Build]) -> tuple[str, str]:
    reason = "the batched one passed its probe"
    for name, build in known.items():
        try:
            _probe(build())
        except Exception as error:  # whatever a kernel raises, the next one may do
            reason = f"{name} failed its probe: {error}"
        else:
            return name, reason
    raise SettingsError(f"no attention backend works on this device; {reason}")


def _probe(backend: AttentionBackend) -> None:
    """One decode row over two blocks in no order and one chunk, against the oracle: seeing all,
    and through a window that ends inside the first block."""
    shape, dtype, device = backend.shape, backend.dtype, backend.device
    oracle = SdpaAttention(shape, dtype, device)
    generator = torch.Generator().manual_seed(0)

    def randn(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator).to(device, dtype)

    block_size = shape.block_size
    size = (3, shape.num_kv_heads, block_size, shape.head_dim)
    kv = [(randn(*size), randn(*size))]
    length = min(3, block_size)
    batch = AttentionBatch([2 * block_size - 1, 0], [1, length], [[2, 0], [1]])
    k, v = (randn(1 + length, shape.num_kv_heads, shape.head_dim) for _ in range(2))
    q = randn(1 + length, shape.num_heads, shape.head_dim)
    close = 1e-4 if dtype == torch.float32 else 3e-2
    for window in (None, block_size + 1):
        options = AttentionOptions(shape.head_dim**-0.5, window)
        results = []
        for each in (backend, oracle):
            each.bind([(keys.clone(), values.clone()) for keys, values in kv])
            results.append(each.forward(q, k, v, 0, options, each.prepare(batch)).float())
        if not torch.allclose(results[0], results[1], atol=close, rtol=close):
            raise RuntimeError("its result is wrong")
