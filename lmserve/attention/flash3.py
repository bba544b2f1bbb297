"""Attention by flash-attn's third version, for Hopper: one function for all rows."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, ClassVar

import torch

from lmserve.attention.base import AttentionOptions, CacheShape
from lmserve.attention.flash import flash_refusal, flash_window
from lmserve.attention.libraries import cannot_import
from lmserve.attention.paged import PagedAttention, PagedMetadata, PrefillRows

MODULE = "flash_attn_interface"
HINT = "it is built in flash-attn's hopper directory"


class Flash3Attention(PagedAttention):
    name: ClassVar[str] = "flash_attn_3"

    @classmethod
    def default_block_size(cls) -> int:
        return 128  # whole tiles of its prefill: such it loads by the tensor memory accelerator

    @classmethod
    def refusal(
        cls,
        shape: CacheShape,
        dtype: torch.dtype,
        device: torch.device,
        options: Sequence[AttentionOptions],
    ) -> str | None:
        return flash_refusal(shape, dtype) or cannot_import(MODULE, HINT)

    def __init__(self, shape: CacheShape, dtype: torch.dtype, device: torch.device):
        super().__init__(shape, dtype, device)
        self._with_kvcache = import_module(MODULE).flash_attn_with_kvcache

    def decode(
        self, q: torch.Tensor, layer: int, options: AttentionOptions, metadata: PagedMetadata
    ) -> torch.Tensor:
        table, context_lens = metadata.table[: len(q)], metadata.context_lens[: len(q)]
        return self._attend(q[:, None], layer, options, table, context_lens)[:, 0]

    def prefill(
        self, q: torch.Tensor, layer: int, options: AttentionOptions, rows: PrefillRows
    ) -> torch.Tensor:
        return self._attend(
            q,
            layer,
            options,
            rows.table,
            rows.context_lens,
            cu_seqlens_q=rows.query_starts,
            max_seqlen_q=rows.max_query,
        )

    def _attend(
        self,
        q: torch.Tensor,
        layer: int,
        options: AttentionOptions,
        table: torch.Tensor,
        context_lens: torch.Tensor,
        **rows: Any,
    ) -> torch.Tensor:
        keys, values = self.kv[layer]
        out: torch.Tensor = self._with_kvcache(
            q,
            keys,
            values,
            cache_seqlens=context_lens,
            page_table=table,
            softmax_scale=options.scale,
            causal=True,
            window_size=flash_window(options),
            softcap=options.softcap or 0.0,
            **rows,
        )
        return out
