"""Attention by the flash-attn package, version 2: decodes split along the context, all other
rows as sequences of unlike lengths, both over the block table."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import ClassVar

import torch

from lmserve.attention.base import AttentionOptions, CacheShape
from lmserve.attention.libraries import cannot_import
from lmserve.attention.paged import PagedAttention, PagedMetadata, PrefillRows

DTYPES = (torch.bfloat16, torch.float16)
PAGE = 256  # blocks are multiples of it
MAX_EVEN = 16  # tokens a row, where all have as many, that are run like decodes
HINT = "pip install flash-attn"


class FlashAttention(PagedAttention):
    name: ClassVar[str] = "flash_attn"

    @classmethod
    def default_block_size(cls) -> int:
        return PAGE

    @classmethod
    def refusal(
        cls,
        shape: CacheShape,
        dtype: torch.dtype,
        device: torch.device,
        options: Sequence[AttentionOptions],
    ) -> str | None:
        if shape.block_size % PAGE:
            return f"it takes blocks of a multiple of {PAGE} tokens, not of {shape.block_size}"
        return flash_refusal(shape, dtype) or cannot_import("flash_attn", HINT)

    def __init__(self, shape: CacheShape, dtype: torch.dtype, device: torch.device):
        super().__init__(shape, dtype, device)
        library = import_module("flash_attn")
        self._with_kvcache = library.flash_attn_with_kvcache
        self._varlen = library.flash_attn_varlen_func

    def decode(
        self, q: torch.Tensor, layer: int, options: AttentionOptions, metadata: PagedMetadata
    ) -> torch.Tensor:
        table, context_lens = metadata.table[: len(q)], metadata.context_lens[: len(q)]
        return self._split(q[:, None], layer, options, table, context_lens)[:, 0]

    def prefill(
        self, q: torch.Tensor, layer: int, options: AttentionOptions, rows: PrefillRows
    ) -> torch.Tensor:
        num_rows, each = len(rows.lens), rows.max_query
        if each <= MAX_EVEN and num_rows * each == len(q):  # what speculation asks for
            even = q.unflatten(0, (num_rows, each))
            return self._split(even, layer, options, rows.table, rows.context_lens).flatten(0, 1)
        keys, values = self.kv[layer]
        out: torch.Tensor = self._varlen(
            q,
            keys,
            values,
            cu_seqlens_q=rows.query_starts,
            cu_seqlens_k=rows.key_starts,
            max_seqlen_q=rows.max_query,
            max_seqlen_k=rows.max_context,
            softmax_scale=options.scale,
            causal=True,
            window_size=flash_window(options),
            softcap=options.softcap or 0.0,
            block_table=rows.table,
        )
        return out

    def _split(
        self,
        q: torch.Tensor,  # (B, Q, heads, head_dim)
        layer: int,
        options: AttentionOptions,
        table: torch.Tensor,
        context_lens: torch.Tensor,
    ) -> torch.Tensor:
        """Few queries a row: contexts are split, so that few rows fill the card too."""
        keys, values = self.kv[layer]
        out: torch.Tensor = self._with_kvcache(
            q,
            keys,
            values,
            cache_seqlens=context_lens,
            block_table=table,
            softmax_scale=options.scale,
            causal=True,
            window_size=flash_window(options),
            softcap=options.softcap or 0.0,
        )
        return out


def flash_refusal(shape: CacheShape, dtype: torch.dtype) -> str | None:
    """What no version of flash-attn takes."""
    if dtype not in DTYPES:
        return f"it takes bfloat16 and float16, not {str(dtype).removeprefix('torch.')}"
    if shape.head_dim % 8 or shape.head_dim > 256:
        return f"it takes heads of a multiple of 8 up to 256, not of {shape.head_dim}"
    return None


def flash_window(options: AttentionOptions) -> tuple[int, int]:
    """Keys before and after the query's own position; -1 for all. Without a window both: only so
    do the heads of a group share their keys when they decode."""
    return (-1, -1) if options.window is None else (options.window - 1, 0)
