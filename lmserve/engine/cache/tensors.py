"""The KV tensors, and what is done to tokens and blocks of them."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from lmserve.attention.base import CacheShape
from lmserve.device.select import device_for
from lmserve.engine.plan import BlockCopy

ALIGNMENT = 64  # of each tensor, in bytes: a line of the processor's cache
RAW = {1: torch.uint8, 2: torch.int16, 4: torch.int32}  # by size: what is moved is not looked at
MAX_MOVED_BYTES = 2**26  # what a move to or from the host holds at once on the device


class KVCache:
    """Keys and values of each layer, (num_blocks, num_kv_heads, block_size, head_dim), or
    tokens first, (num_blocks, block_size, num_kv_heads, head_dim): then there is one block
    more, which belongs to nobody and takes what padding rows write."""

    def __init__(
        self,
        shape: CacheShape,
        num_blocks: int,
        dtype: torch.dtype,
        device: torch.device,
        tokens_first: bool = False,
    ):
        inner = (shape.num_kv_heads, shape.block_size)
        if tokens_first:
            inner, num_blocks = inner[::-1], num_blocks + 1
        size = (num_blocks, *inner, shape.head_dim)
        # all parts, keys and values of each layer in turn, as whole numbers
        self._parts = _zeros(2 * shape.num_layers, size, RAW[dtype.itemsize], device)
        self.layers = [(k.view(dtype), v.view(dtype)) for k, v in self._parts.split(2)]
        self._shape = shape
        self._device = device
        self._tokens_first = tokens_first
        self.token_bytes = (
            2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * dtype.itemsize
        )

    def copy(self, copies: Sequence[BlockCopy]) -> None:
        """All sources are read before a target is written. No more than the tokens asked for:
        a block may be large."""
        if not copies:
            return
        lens = np.asarray([copy.num_tokens for copy in copies])
        offsets = np.arange(lens.sum()) - np.repeat(np.cumsum(lens) - lens, lens)
        ends = ([copy.source for copy in copies], [copy.target for copy in copies])
        sources, targets = device_for(self._device).upload_together(
            [self._rows(np.repeat(blocks, lens), offsets) for blocks in ends]
        )
        parts = self._by_row()
        parts.index_copy_(1, targets, parts.index_select(1, sources))

    def scrub(self, blocks: Sequence[int]) -> None:
        """Zeroes these blocks. A masked slot weighs 0, but 0 times infinity would spoil whoever
        holds the block next."""
        if blocks:
            self._parts.index_fill_(1, self._index(blocks), 0)

    def read(self, blocks: Sequence[int], num_tokens: int) -> memoryview:
        """The first tokens of these blocks, as bytes on the host: (tokens, layers, keys and
        values, kv heads, head_dim)."""
        host = torch.empty(self._tokens_size(len(blocks)), dtype=self._parts.dtype)
        on_host = self._device.type == "cpu"
        for some in self._slices(len(blocks)):
            index = self._index(blocks[some])
            tokens = host[some] if on_host else self._tokens(len(index))
            for at, cache in enumerate(self._parts):
                tokens[:, :, at] = self._tokens_of(cache.index_select(0, index))
            if not on_host:
                host[some] = device_for(self._device).fetch([tokens]).wait()[0]
        found = host.flatten(0, 1)[:num_tokens]
        return found.view(-1).view(torch.uint8).numpy().data

    def write(self, blocks: Sequence[int], num_tokens: int, data: bytearray) -> None:
        """The inverse. What is left of the last block becomes zeros."""
        host = torch.frombuffer(data, dtype=self._parts.dtype).view(num_tokens, -1)
        block_size = self._shape.block_size
        for some in self._slices(len(blocks)):
            index = self._index(blocks[some])
            tokens = self._tokens(len(index))
            flat = tokens.view(len(index) * block_size, -1)
            given = host[some.start * block_size : some.stop * block_size]
            flat[: len(given)] = given.to(self._device)
            flat[len(given) :] = 0
            for at, cache in enumerate(self._parts):
                cache.index_copy_(0, index, self._tokens_of(tokens[:, :, at]))

    def _by_row(self) -> torch.Tensor:
        """(parts, rows, numbers): a row is a token, or heads first a token of one head."""
        width = self._shape.head_dim
        if self._tokens_first:
            width *= self._shape.num_kv_heads
        return self._parts.view(len(self._parts), -1, width)

    def _rows(self, blocks: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Where these tokens are."""
        block_size, num_kv_heads = self._shape.block_size, self._shape.num_kv_heads
        if self._tokens_first:
            return blocks * block_size + offsets
        heads = blocks[:, None] * num_kv_heads + np.arange(num_kv_heads)
        return (heads * block_size + offsets[:, None]).reshape(-1)

    def _tokens_of(self, blocks: torch.Tensor) -> torch.Tensor:
        """Blocks of the cache with their tokens first, and the other way round."""
        return blocks if self._tokens_first else blocks.transpose(1, 2)

    def _tokens(self, num_blocks: int) -> torch.Tensor:
        """Room for the tokens of so many blocks."""
        size = self._tokens_size(num_blocks)
        return torch.empty(size, dtype=self._parts.dtype, device=self._device)

    def _tokens_size(self, num_blocks: int) -> tuple[int, ...]:
        """(block, slot, part, kv head, head_dim)"""
        shape = self._shape
        numbers = (shape.num_kv_heads, shape.head_dim)
        return (num_blocks, shape.block_size, len(self._parts), *numbers)

    def _slices(self, num_blocks: int) -> Iterator[slice]:
        step = max(1, MAX_MOVED_BYTES // (self.token_bytes * self._shape.block_size))
        for start in range(0, num_blocks, step):
            yield slice(start, min(start + step, num_blocks))

    def _index(self, blocks: Sequence[int]) -> torch.Tensor:
        return device_for(self._device).upload(np.asarray(blocks, dtype=np.int64))


def _zeros(
    count: int, size: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """(count, *size) zeros, so that masked slots are finite. On CPU mapped: the system gives page
    by page what is touched, while torch and numpy would write more."""
    if device.type != "cpu":
        return torch.zeros(count, *size, dtype=dtype, device=device)
    numbers = math.prod(size)
    whole = ALIGNMENT // dtype.itemsize
    step = -(-numbers // whole) * whole
    mapped = mmap.mmap(
        -1, count * step * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    )
    memory = torch.frombuffer(mapped, dtype=dtype).view(count, step)
    return memory[:, :numbers].unflatten(1, size)
