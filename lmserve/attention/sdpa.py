"""The slow, obvious attention: a loop over sequences, softmax in float32. The oracle."""

from __future__ import annotations

from typing import ClassVar

import torch

from lmserve.attention.base import AttentionBatch, AttentionOptions, Metadata, block_table
from lmserve.attention.slots import SlotAttention, SlotMetadata


class SdpaAttention(SlotAttention):
    name: ClassVar[str] = "sdpa"

    def prepare(self, batch: AttentionBatch) -> Metadata:
        return SlotMetadata(batch, self.slots(batch, block_table(batch)))

    def attend(
        self, q: torch.Tensor, layer: int, options: AttentionOptions, metadata: Metadata
    ) -> torch.Tensor:
        assert isinstance(metadata, SlotMetadata)
        keys, values = self.kv[layer]
        batch, out, first = metadata.batch, torch.empty_like(q), 0
        for start, length, blocks in zip(batch.starts, batch.lens, batch.blocks, strict=True):
            k = self._context(keys, blocks, start + length)
            v = self._context(values, blocks, start + length)
            rows = slice(first, first + length)
            out[rows] = _attend_one(q[rows], k, v, start, options)
            first += length
        return out

    def _context(self, cache: torch.Tensor, blocks: object, length: int) -> torch.Tensor:
        """(query heads, context, head_dim) of one sequence."""
        index = torch.as_tensor(blocks, device=self.device)
        context = cache[index].transpose(0, 1).flatten(1, 2)[:, :length].float()
        return context.repeat_interleave(self.shape.num_heads // self.shape.num_kv_heads, dim=0)


def _attend_one(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, start: int, options: AttentionOptions
) -> torch.Tensor:
    scores = q.float().transpose(0, 1) @ k.transpose(1, 2) * options.scale
    if options.softcap is not None:
        scores = options.softcap * torch.tanh(scores / options.softcap)
    position = torch.arange(start, start + q.shape[0], device=q.device)[:, None]
    key = torch.arange(k.shape[1], device=q.device)
    hidden = key > position
    if options.window is not None:
        hidden |= key <= position - options.window
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    return (weights @ v).transpose(0, 1).to(q.dtype)
