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
