"""Steps over a paged cache, and what the oracle makes of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import strategies as st

from lmserve.attention.base import AttentionBatch, AttentionOptions, CacheShape
from lmserve.attention.paged import PagedAttention
from lmserve.attention.sdpa import SdpaAttention

CPU = torch.device("cpu")


class Step:
    """Random tokens for rows over a cache of noise, its tables in no order. Block
    `num_blocks` is the spare one. Slots that no row may see hold what is not a number."""

    def __init__(
        self,
        shape: CacheShape,
        starts: Sequence[int],
        lens: Sequence[int],
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ):
        self.shape, self.dtype = shape, dtype
        self.generator = torch.Generator().manual_seed(seed)
        contexts = [start + length for start, length in zip(starts, lens, strict=True)]
        sizes = [-(-context // shape.block_size) for context in contexts]
        self.num_blocks = sum(sizes) + 2
        order = torch.randperm(self.num_blocks, generator=self.generator).tolist()
        blocks = [[order.pop() for _ in range(size)] for size in sizes]
        self.batch = AttentionBatch(list(starts), list(lens), blocks)
        size = (self.num_blocks + 1, shape.block_size, shape.num_kv_heads, shape.head_dim)
        self.kv = [self.randn(*size) for _ in range(2)]
        seen = torch.zeros(size[:2], dtype=torch.bool)
        for table, context in zip(blocks, contexts, strict=True):
            for position in range(context):
                block, slot = divmod(position, shape.block_size)
                seen[table[block], slot] = True
        for each in self.kv:
            each[~seen] = torch.nan
        heads = (shape.num_heads, shape.num_kv_heads, shape.num_kv_heads)
        self.qkv = [self.randn(sum(lens), each, shape.head_dim) for each in heads]
        if seed % 2:  # as transformers gives them
            self.qkv = [each.transpose(0, 1).contiguous().transpose(0, 1) for each in self.qkv]

    def randn(self, *size: int) -> torch.Tensor:
        return torch.randn(*size, generator=self.generator).to(self.dtype)

    def bind(self, backend: PagedAttention) -> PagedAttention:
        keys, values = (each.clone() for each in self.kv)
        backend.bind([(keys, values)])
        return backend

    def run(self, backend: PagedAttention, options: AttentionOptions) -> torch.Tensor:
        self.bind(backend)
        return backend.forward(*self.qkv, 0, options, backend.prepare(self.batch))

    def expected(self, options: AttentionOptions) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The oracle's answer in float32, and its cache, tokens first."""
        oracle = SdpaAttention(self.shape, torch.float32, CPU)
        oracle.bind([tuple(each.float().transpose(1, 2).contiguous() for each in self.kv)])
        q, k, v = (each.float() for each in self.qkv)
        out = oracle.forward(q, k, v, 0, options, oracle.prepare(self.batch))
        return out, [each.transpose(1, 2) for each in oracle.kv[0]]


def check(step: Step, backend: PagedAttention, options: AttentionOptions, close: float) -> None:
    out = step.run(backend, options)
    expected, cache = step.expected(options)
    assert out.dtype == step.dtype
    torch.testing.assert_close(out.float(), expected, atol=close, rtol=close)
    for held, wanted in zip(backend.kv[0], cache, strict=True):
        torch.testing.assert_close(held.float(), wanted, atol=0, rtol=0, equal_nan=True)


@st.composite
def shapes(draw: st.DrawFn, head_dims: Sequence[int], block_sizes: Sequence[int]) -> CacheShape:
    num_kv_heads = draw(st.sampled_from([1, 2]))
    return CacheShape(
        num_layers=1,
        num_heads=num_kv_heads * draw(st.sampled_from([1, 2, 3])),
        num_kv_heads=num_kv_heads,
        head_dim=draw(st.sampled_from(head_dims)),
        block_size=draw(st.sampled_from(block_sizes)),
    )


@st.composite
def rows(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Decodes, chunks behind a context and whole prompts, in any order."""
    length = st.one_of(st.just(1), st.integers(1, 9), st.integers(30, 70))
    lens = draw(st.lists(length, min_size=1, max_size=5))
    start = st.one_of(st.just(0), st.integers(0, 40), st.integers(200, 300))
    return [draw(start) for _ in lens], lens


def options(softcaps: Sequence[float | None] = (None, 5.0)) -> st.SearchStrategy[AttentionOptions]:
    windows = st.sampled_from([None, None, 1, 5, 64])
    return st.builds(AttentionOptions, st.just(0.3), windows, st.sampled_from(softcaps))
