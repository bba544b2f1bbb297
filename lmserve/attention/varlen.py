"""Attention by torch's own flash kernels: prefill by `varlen_attn`, decodes by our Triton kernel.

Newer versions of `varlen_attn` read keys and values through a block table, where the blocks are
large enough; for the others the contexts are gathered first, one after another.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any, ClassVar

import torch

from lmserve.attention.base import AttentionOptions, CacheShape
from lmserve.attention.flash import PAGE, flash_refusal
from lmserve.attention.libraries import cannot_import
from lmserve.attention.paged import PagedAttention, PagedMetadata, PrefillRows
from lmserve.attention.paged_torch import PagedTorchAttention
from lmserve.attention.triton_paged import BLOCK_SIZE, TritonAttention

MODULE = "torch.nn.attention.varlen"
HINT = "it came with torch 2.10"
MAX_GATHERED_BYTES = 2**28  # of keys, and of values: rows beyond it are another call
FLOAT8 = torch.float8_e4m3fn


class VarlenAttention(PagedAttention):
    name: ClassVar[str] = "varlen"
    gathers: ClassVar[bool] = True

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
        if any(each.softcap is not None for each in options):
            return "it cannot cap scores, as this model does"
        read = torch.bfloat16 if dtype == FLOAT8 else dtype
        return flash_refusal(shape, read) or cannot_import(MODULE, HINT)

    def __init__(self, shape: CacheShape, dtype: torch.dtype, device: torch.device):
        super().__init__(shape, dtype, device)
        logging.getLogger(MODULE).setLevel(logging.WARNING)  # it tells of every call
        self._varlen: Callable[..., torch.Tensor] = import_module(MODULE).varlen_attn
        groups = {"enable_gqa": shape.num_heads != shape.num_kv_heads}
        self._groups = groups if "enable_gqa" in _parameters() else {}
        # who writes, decodes, and caps scores
        has_triton = TritonAttention.refusal(shape, dtype, device, ()) is None
        decoder = TritonAttention if has_triton else PagedTorchAttention
        self._other: PagedAttention = decoder(shape, dtype, device)

    def bind(self, kv: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        super().bind(kv)
        self._other.bind(kv)

    def write(self, k: torch.Tensor, v: torch.Tensor, layer: int, metadata: PagedMetadata) -> None:
        self._other.write(k, v, layer, metadata)

    def decode(
        self, q: torch.Tensor, layer: int, options: AttentionOptions, metadata: PagedMetadata
    ) -> torch.Tensor:
        return self._other.decode(q, layer, options, metadata)

    def prefill(
        self, q: torch.Tensor, layer: int, options: AttentionOptions, rows: PrefillRows
    ) -> torch.Tensor:
        if options.softcap is not None:
            return self._other.prefill(q, layer, options, rows)
        parts = []
        for first, some in self._fitting(rows, q.dtype):
            assert some.key_slots is not None
            k, v = self.gather(layer, some.key_slots, q.dtype)
            part = q[first : first + sum(some.lens)]
            parts.append(self._attend(part, k, v, options, some))
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        options: AttentionOptions,
        rows: PrefillRows,
        **paged: Any,
    ) -> torch.Tensor:
        window = -1 if options.window is None else options.window - 1
        return self._varlen(
            q,
            k,
            v,
            rows.query_starts,
            rows.key_starts,
            rows.max_query,
            rows.max_context,
            scale=options.scale,
            window_size=(window, 0),
            **self._groups,
            **paged,
        )

    def _fitting(self, rows: PrefillRows, dtype: torch.dtype) -> Iterator[tuple[int, PrefillRows]]:
        """Rows whose contexts may be gathered at once, each with the step's token they begin at
        (counted from the first of `rows`)."""
        token_bytes = self.shape.num_kv_heads * self.shape.head_dim * dtype.itemsize
        limit, begin, first = MAX_GATHERED_BYTES // token_bytes, 0, 0
        while begin < len(rows.lens):
            end, total = begin + 1, rows.contexts[begin]
            while end < len(rows.lens) and total + rows.contexts[end] <= limit:
                total, end = total + rows.contexts[end], end + 1
            yield first, rows.part(begin, end)
            first += sum(rows.lens[begin:end])
            begin = end


class PagedVarlenAttention(VarlenAttention):
    remark: ClassVar[str] = "over the block table"
    gathers: ClassVar[bool] = False

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
        if dtype == FLOAT8:
            return "it reads no cache of float8"
        reason = super().refusal(shape, dtype, device, options)
        if reason is None and not {"block_table", "seqused_k"} <= _parameters():
            reason = "this torch's varlen_attn takes no block table"
        return reason

    def prefill(
        self, q: torch.Tensor, layer: int, options: AttentionOptions, rows: PrefillRows
    ) -> torch.Tensor:
        if options.softcap is not None:
            return self._other.prefill(q, layer, options, rows)
        keys, values = self.kv[layer]
        paged = {"seqused_k": rows.context_lens, "block_table": rows.table}
        return self._attend(q, keys, values, options, rows, **paged)


def _parameters() -> set[str]:
    return set(inspect.signature(import_module(MODULE).varlen_attn).parameters)
