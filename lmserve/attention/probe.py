"""Does a backend give what the oracle gives? A few rows tell, before anybody depends on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from lmserve.attention.base import (
    AttentionBackend,
    AttentionBatch,
    AttentionOptions,
    CacheShape,
)
from lmserve.attention.paged import PagedAttention, to_cache
from lmserve.attention.sdpa import SdpaAttention

NUM_BLOCKS = 6  # and the spare one


def probe(backend: AttentionBackend, options: Sequence[AttentionOptions] = ()) -> None:
    """Raises whatever the backend raises, or RuntimeError. `options` are what the layers of the
    model ask for; without, all is seen, and once through a window."""
    cases = list(_cases(options, backend.shape))
    for batch in _batches(backend.shape.block_size):
        for case in cases:
            _compare(backend, batch, case)
    if isinstance(backend, PagedAttention):
        for case in cases:
            _compare_decode(backend, case)


def _cases(options: Sequence[AttentionOptions], shape: CacheShape) -> Iterator[AttentionOptions]:
    """These, each once, with windows that end inside the first block."""
    window = shape.block_size + 1
    if not options:
        scale = shape.head_dim**-0.5
        options = (AttentionOptions(scale), AttentionOptions(scale, window))
    yield from dict.fromkeys(
        each if each.window is None else replace(each, window=window) for each in options
    )


def _batches(block_size: int) -> Iterator[AttentionBatch]:
    """Decodes, one over blocks in no order; a chunk behind a context; a whole prompt, and
    that alone; a few tokens behind each context."""
    half, few = block_size // 2, min(3, block_size)
    yield AttentionBatch(
        [2 * block_size - 1, 0, half, 0],
        [1, 1, block_size, few],
        [[2, 0], [5], [1, 3], [4]],
    )
    yield AttentionBatch([0, 0], [few, 2 * block_size], [[4], [3, 1]])
    yield AttentionBatch([half, block_size], [few, few], [[2, 0], [3, 1]])


class _Pool:
    """Noise, as the backend's cache holds it."""

    def __init__(self, backend: AttentionBackend):
        self.backend = backend
        self.generator = torch.Generator().manual_seed(0)
        # 8-bit floats are for the cache alone
        dtype = backend.dtype
        self.dtype = torch.bfloat16 if dtype == torch.float8_e4m3fn else dtype
        shape = backend.shape
        size = (NUM_BLOCKS + 1, shape.num_kv_heads, shape.block_size, shape.head_dim)
        self.kv = [self.cached(*size) for _ in range(2)]

    def randn(self, *size: int) -> torch.Tensor:
        made = torch.randn(*size, generator=self.generator)
        return made.to(self.backend.device, self.dtype)

    def cached(self, *size: int) -> torch.Tensor:
        """Numbers that the cache holds as they are."""
        return to_cache(self.randn(*size), self.backend.dtype).to(self.dtype)

    def tokens(self, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        shape = self.backend.shape
        k, v = (self.cached(count, shape.num_kv_heads, shape.head_dim) for _ in range(2))
        return self.randn(count, shape.num_heads, shape.head_dim), k, v

    def bind(self) -> None:
        kv = [each.transpose(1, 2) if self.backend.tokens_first else each for each in self.kv]
        keys, values = (
            to_cache(each, self.backend.dtype).clone(memory_format=torch.contiguous_format)
            for each in kv
        )
        self.backend.bind([(keys, values)])

    def expected(
        self,
        step: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        batch: AttentionBatch,
        options: AttentionOptions,
    ) -> torch.Tensor:
        oracle = SdpaAttention(self.backend.shape, torch.float32, self.backend.device)
        keys, values = (each.float().clone() for each in self.kv)
        oracle.bind([(keys, values)])
        q, k, v = (each.float() for each in step)
        return oracle.forward(q, k, v, 0, options, oracle.prepare(batch))


def _compare(backend: AttentionBackend, batch: AttentionBatch, options: AttentionOptions) -> None:
    pool = _Pool(backend)
    step = pool.tokens(sum(batch.lens))
    pool.bind()
    out = backend.forward(*step, 0, options, backend.prepare(batch))
    _check(out, pool.expected(step, batch, options), pool.dtype)


def _compare_decode(backend: PagedAttention, options: AttentionOptions) -> None:
    """As a graph does: with a padding row in the spare block, tables wider than need be, and
    what is left of those of earlier rows beyond the contexts."""
    pool, size = _Pool(backend), backend.shape.block_size
    step = pool.tokens(2)
    pool.bind()
    slots, table, context_lens = (
        torch.tensor(numbers).to(backend.device)
        for numbers in (
            [size - 1, NUM_BLOCKS * size],
            [[2, 0, 4], [NUM_BLOCKS] * 3],
            [2 * size, 1],
        )
    )
    metadata = backend.decode_metadata(slots, table.int(), context_lens.int(), 3 * size)
    out = backend.forward(*step, 0, options, metadata)
    batch = AttentionBatch([2 * size - 1, 0], [1, 1], [[2, 0], [NUM_BLOCKS]])
    _check(out, pool.expected(step, batch, options), pool.dtype)


def _check(out: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    close = 1e-4 if dtype == torch.float32 else 3e-2
    if not torch.allclose(out.float(), expected, atol=close, rtol=close):
        raise RuntimeError(f"its result is wrong by {(out - expected).abs().max():.2g}")
