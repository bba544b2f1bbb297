"""Attention by our Triton kernels, for a bare torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from lmserve.attention.base import AttentionOptions, CacheShape
from lmserve.attention.libraries import cannot_import
from lmserve.attention.paged import PagedAttention, PagedMetadata, PrefillRows
from lmserve.device.launches import launch, runs_triton

HINT = "it comes with torch for cuda"
BLOCK_SIZE = 64  # whole tiles of the kernels


class TritonAttention(PagedAttention):
    name: ClassVar[str] = "triton"

    @classmethod
    def default_block_size(cls) -> int:
        return BLOCK_SIZE

    @classmethod
    def refusal(
        cls,
        shape: CacheShape,
        dtype: torch.dtype,
        device: torch.device,
        options: Sequence[AttentionOptions],
    ) -> str | None:
        if not runs_triton(device):
            return "Triton needs a GPU"
        return cannot_import("triton", HINT)

    def __init__(self, shape: CacheShape, dtype: torch.dtype, device: torch.device):
        super().__init__(shape, dtype, device)
        from lmserve.attention import triton_decode, triton_prefill

        self._decode = launch(triton_decode.paged_decode)
        self._prefill = launch(triton_prefill.paged_prefill)
        self._write = launch(triton_prefill.write_kv)
        self._scratch = triton_decode.decode_scratch(
            0, shape.num_heads, shape.num_kv_heads, shape.head_dim, device
        )

    def write(self, k: torch.Tensor, v: torch.Tensor, layer: int, metadata: PagedMetadata) -> None:
        self._write(k, v, metadata.slots, *self.kv[layer])

    def decode(
        self, q: torch.Tensor, layer: int, options: AttentionOptions, metadata: PagedMetadata
    ) -> torch.Tensor:
        out = torch.empty_like(q)
        self._decode(
            q,
            *self.kv[layer],
            metadata.table,
            metadata.context_lens,
            out,
            self._scratch,
            scale=options.scale,
            window=options.window,
            softcap=options.softcap,
        )
        return out

    def prefill(
        self, q: torch.Tensor, layer: int, options: AttentionOptions, rows: PrefillRows
    ) -> torch.Tensor:
        out = torch.empty_like(q)
        self._prefill(
            q,
            *self.kv[layer],
            rows.table,
            rows.context_lens,
            rows.query_starts,
            out,
            max_query=rows.max_query,
            scale=options.scale,
            window=options.window,
            softcap=options.softcap,
        )
        return out
