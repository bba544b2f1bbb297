"""The paged backend in plain torch: the twin of the kernels, softmax in float32."""

from __future__ import annotations

from typing import ClassVar

import torch

from lmserve.attention.base import AttentionOptions
from lmserve.attention.paged import PagedAttention, PagedMetadata, PrefillRows

MAX_GATHERED = 2**26  # elements of the keys, and likewise of the scores, held at once


class PagedTorchAttention(PagedAttention):
    name: ClassVar[str] = "paged"

    def decode(
        self, q: torch.Tensor, layer: int, options: AttentionOptions, metadata: PagedMetadata
    ) -> torch.Tensor:
        shape, table = self.shape, metadata.table
        width = table.shape[1] * shape.block_size * shape.num_kv_heads * shape.head_dim
        step = max(1, MAX_GATHERED // width)
        parts = [
            self._decode_some(
                rows, layer, options, table[at : at + step], metadata.context_lens[at : at + step]
            )
            for at, rows in zip(range(0, len(q), step), q.split(step), strict=True)
        ]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _decode_some(
        self,
        q: torch.Tensor,
        layer: int,
        options: AttentionOptions,
        table: torch.Tensor,
        context_lens: torch.Tensor,
    ) -> torch.Tensor:
        """The whole width of the table is gathered, whatever the contexts: shapes are fixed."""
        count = len(q)
        table = table[:count].long()
        k, v = (cache[table].flatten(1, 2).float() for cache in self.kv[layer])
        key = torch.arange(k.shape[1], device=q.device)
        last = context_lens[:count, None]
        hidden = key >= last
        if options.window is not None:
            hidden |= key < last - options.window
        out = self._attend(q[:, None], k, v, hidden[:, None], options)
        return out[:, 0].to(q.dtype)

    def prefill(
        self, q: torch.Tensor, layer: int, options: AttentionOptions, rows: PrefillRows
    ) -> torch.Tensor:
        out, first = torch.empty_like(q), 0
        for row, (length, context) in enumerate(zip(rows.lens, rows.contexts, strict=True)):
            blocks = rows.table[row, : -(-context // self.shape.block_size)].long()
            k, v = (cache[blocks].flatten(0, 1)[:context].float() for cache in self.kv[layer])
            step = max(1, MAX_GATHERED // (context * self.shape.num_heads))
            for at in range(0, length, step):
                tokens = slice(first + at, first + min(at + step, length))
                start = context - length + at
                hidden = _hidden(start, tokens.stop - tokens.start, k, options.window)
                part = self._attend(q[None, tokens], k[None], v[None], hidden[None], options)
                out[tokens] = part[0]
            first += length
        return out

    def _attend(
        self,
        q: torch.Tensor,  # (B, Q, heads, head_dim)
        k: torch.Tensor,  # (B, C, kv heads, head_dim), as is v
        v: torch.Tensor,
        hidden: torch.Tensor,  # (B, Q, C)
        options: AttentionOptions,
    ) -> torch.Tensor:
        num_kv_heads = self.shape.num_kv_heads
        group = self.shape.num_heads // num_kv_heads
        q = q.float().unflatten(2, (num_kv_heads, group)) * options.scale
        scores = torch.einsum("bqkgd,bckd->bkgqc", q, k)
        if options.softcap is not None:
            scores = options.softcap * torch.tanh(scores / options.softcap)
        weights = scores.masked_fill(hidden[:, None, None], -torch.inf).softmax(-1)
        # what no query sees may hold anything, and 0 times infinity is no 0
        v = v.masked_fill(hidden.all(1)[..., None, None], 0)
        return torch.einsum("bkgqc,bckd->bqkgd", weights, v).flatten(2, 3)


def _hidden(start: int, count: int, k: torch.Tensor, window: int | None) -> torch.Tensor:
    """(Q, C): what the queries at `start` and on do not see of these keys."""
    position = torch.arange(start, start + count, device=k.device)[:, None]
    key = torch.arange(len(k), device=k.device)
    hidden = key > position
    if window is not None:
        hidden |= key <= position - window
    return hidden
