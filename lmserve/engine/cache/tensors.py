"""The KV tensors, and what is done to whole blocks of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lmserve.attention.base import CacheShape
from lmserve.engine.plan import BlockCopy


class KVCache:
    """Keys and values of each layer, (num_blocks, num_kv_heads, block_size, head_dim)."""

    def __init__(
        self, shape: CacheShape, num_blocks: int, dtype: torch.dtype, device: torch.device
    ):
        size = (num_blocks, shape.num_kv_heads, shape.block_size, shape.head_dim)

        def allocate() -> torch.Tensor:
            # zeros, so that masked slots are finite; the system gives the pages when touched
            return torch.zeros(size, dtype=dtype, device=device)

        self.layers = [(allocate(), allocate()) for _ in range(shape.num_layers)]
        self._shape = shape
        self._dtype, self._device = dtype, device
        self.token_bytes = (
            2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * dtype.itemsize
        )

    def copy(self, copies: Sequence[BlockCopy]) -> None:
        """All sources are read before a target is written. Whole blocks are copied: slots
        beyond `num_tokens` are written before anyone reads them."""
        if not copies:
            return
        device = self.layers[0][0].device
        sources = torch.tensor([copy.source for copy in copies], device=device)
        targets = torch.tensor([copy.target for copy in copies], device=device)
        for pair in self.layers:
            for cache in pair:
                cache.index_copy_(0, targets, cache.index_select(0, sources))

    def scrub(self, blocks: Sequence[int]) -> None:
        """Zeroes these blocks. A masked slot weighs 0, but 0 times infinity would spoil whoever
        holds the block next."""
        if not blocks:
            return
        index = torch.tensor(blocks, device=self.layers[0][0].device)
        for pair in self.layers:
            for cache in pair:
                cache.index_fill_(0, index, 0)

    def read(self, blocks: Sequence[int], num_tokens: int) -> memoryview:
        """The first tokens of these blocks, as bytes on the host: (tokens, layers, keys and
        values, kv heads, head_dim)."""
        parts = [cache for pair in self.layers for cache in pair]
        index = torch.tensor(blocks, device=self._device)
        tokens = self._tokens(len(blocks))
        for at, cache in enumerate(parts):
            tokens[:, :, at] = cache.index_select(0, index).transpose(1, 2)
        found = tokens.flatten(0, 1)[:num_tokens]
        if self._device.type == "cuda":
            host = torch.empty_like(found, device="cpu", pin_memory=True)
            found = host.copy_(found, non_blocking=True)
            torch.cuda.current_stream(self._device).synchronize()
        return found.view(-1).view(torch.uint8).numpy().data

    def write(self, blocks: Sequence[int], num_tokens: int, data: bytearray) -> None:
        """The inverse. What is left of the last block becomes zeros."""
        parts = [cache for pair in self.layers for cache in pair]
        index = torch.tensor(blocks, device=self._device)
        tokens = self._tokens(len(blocks))
        flat = tokens.flatten(0, 1)
        flat[:num_tokens].view(-1).copy_(torch.frombuffer(data, dtype=self._dtype))
        flat[num_tokens:] = 0
        for at, cache in enumerate(parts):
            cache.index_copy_(0, index, tokens[:, :, at].transpose(1, 2))

    def _tokens(self, num_blocks: int) -> torch.Tensor:
        """Room for the tokens of so many blocks, (block, slot, part, kv head, head_dim)."""
        shape = self._shape
        size = (num_blocks, shape.block_size, 2 * shape.num_layers)
        return torch.empty(
            (*size, shape.num_kv_heads, shape.head_dim), dtype=self._dtype, device=self._device
        )
