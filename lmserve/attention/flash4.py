"""Flash-attn 2 with the prefill of the fourth version, which reads no paged cache on Hopper:
for steps whose prefill rows all start at 0, so that their keys are those of this step."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import ClassVar

import torch

from lmserve.attention.base import AttentionOptions, CacheShape
from lmserve.attention.flash import FlashAttention
from lmserve.attention.libraries import cannot_import
from lmserve.attention.paged import PrefillRows

MODULE = "flash_attn.cute.interface"
HINT = "pip install flash-attn nvidia-cutlass-dsl"
HEAD_DIMS = (64, 96, 128)


class Flash4Attention(FlashAttention):
    remark: ClassVar[str] = "with version 4 for whole prompts"

    @classmethod
    def refusal(
        cls,
        shape: CacheShape,
        dtype: torch.dtype,
        device: torch.device,
        options: Sequence[AttentionOptions],
    ) -> str | None:
        if shape.head_dim not in HEAD_DIMS:
            return f"version 4 takes no heads of {shape.head_dim}"
        reason = super().refusal(shape, dtype, device, options)
        return reason or cannot_import(MODULE, HINT)

    def __init__(self, shape: CacheShape, dtype: torch.dtype, device: torch.device):
        super().__init__(shape, dtype, device)
        self._whole = import_module(MODULE).flash_attn_varlen_func

    def prefill(
        self, q: torch.Tensor, layer: int, options: AttentionOptions, rows: PrefillRows
    ) -> torch.Tensor:
        if not rows.fresh or rows.key_slots is None:
            return super().prefill(q, layer, options, rows)
        k, v = self.gather(layer, rows.key_slots, q.dtype)
        window = (None, None) if options.window is None else (options.window - 1, 0)
        out = self._whole(
            q,
            k,
            v,
            cu_seqlens_q=rows.query_starts,
            cu_seqlens_k=rows.key_starts,
            softmax_scale=options.scale,
            causal=True,
            window_size=window,
            softcap=options.softcap or 0.0,
        )
        attended: torch.Tensor = out[0] if isinstance(out, tuple) else out
        return attended
