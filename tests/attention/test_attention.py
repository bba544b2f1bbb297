"""The batched attention against the slow oracle, and its bits when deterministic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmserve.attention.base import AttentionBatch, AttentionOptions, CacheShape
from lmserve.attention.cpu import CpuAttention
from lmserve.attention.sdpa import SdpaAttention

CPU = torch.device("cpu")


class Pool:
    """A cache filled with noise, block tables out of order, and random tokens to write."""

    def __init__(self, shape: CacheShape, contexts: list[int], seed: int):
        self.shape = shape
        self.generator = torch.Generator().manual_seed(seed)
        sizes = [-(-context // shape.block_size) for context in contexts]
        order = torch.randperm(sum(sizes) + 3, generator=self.generator).tolist()
        self.blocks = [[order.pop() for _ in range(size)] for size in sizes]
        size = (sum(sizes) + 3, shape.num_kv_heads, shape.block_size, shape.head_dim)
        self.kv = [(self.randn(*size), self.randn(*size))]

    def randn(self, *size: int) -> torch.Tensor:
        return torch.randn(*size, generator=self.generator)

    def tokens(self, count: int) -> list[torch.Tensor]:
        heads = (self.shape.num_heads, self.shape.num_kv_heads, self.shape.num_kv_heads)
        return [self.randn(count, each, self.shape.head_dim) for each in heads]


@st.composite
def cases(draw):
    num_kv_heads = draw(st.sampled_from([1, 2, 3]))
    shape = CacheShape(
        num_layers=1,
        num_heads=num_kv_heads * draw(st.sampled_from([1, 2, 3])),
        num_kv_heads=num_kv_heads,
        head_dim=draw(st.sampled_from([4, 8, 16])),
        block_size=draw(st.sampled_from([1, 3, 8, 16, 64])),
    )
    length = st.one_of(st.just(1), st.integers(1, 20), st.integers(100, 300))
    lens = draw(st.lists(length, min_size=1, max_size=6))
    starts = [draw(st.one_of(st.just(0), st.integers(0, 400))) for _ in lens]
    window = draw(st.sampled_from([None, 1, 5, 64, 300]))
    softcap = draw(st.sampled_from([None, 5.0]))
    return shape, starts, lens, AttentionOptions(0.3, window, softcap), draw(st.integers(0, 999))


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@settings(max_examples=20, deadline=None)
@given(case=cases(), deterministic=st.booleans())
def test_batched_attention_equals_the_oracle(dtype, close, case, deterministic):
    shape, starts, lens, options, seed = case
    contexts = [start + length for start, length in zip(starts, lens, strict=True)]
    pool = Pool(shape, contexts, seed)
    batch = AttentionBatch(starts, lens, pool.blocks)
    q, k, v = (each.to(dtype) for each in pool.tokens(sum(lens)))
    outs, caches = [], []
    for backend in (
        SdpaAttention(shape, dtype, CPU),
        CpuAttention(shape, dtype, CPU, deterministic),
    ):
        caches.append(
            [(keys.to(dtype, copy=True), values.to(dtype, copy=True)) for keys, values in pool.kv]
        )
        backend.bind(caches[-1])
        outs.append(backend.forward(q, k, v, 0, options, backend.prepare(batch)))
    torch.testing.assert_close(outs[1], outs[0], atol=close, rtol=close)
    for pair, expected in zip(caches[1][0], caches[0][0], strict=True):
        assert torch.equal(pair, expected)


@settings(max_examples=15, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 519), max_size=5, unique=True),
    neighbours=st.lists(st.tuples(st.integers(0, 700), st.integers(1, 40)), max_size=5),
    window=st.sampled_from([None, 100]),
    softcap=st.sampled_from([None, 5.0]),
    seed=st.integers(0, 99),
)
def test_deterministic_bits_do_not_depend_on_chunks_or_neighbours(
    cuts, neighbours, window, softcap, seed
):
    shape = CacheShape(1, 6, 2, 16, 16)
    total = 520
    contexts = [total, *(start + length for start, length in neighbours)]
    pool = Pool(shape, contexts, seed)
    options = AttentionOptions(0.25, window, softcap)
    backend = CpuAttention(shape, torch.float32, CPU, deterministic=True)
    q, k, v = pool.tokens(total)

    def run(chunks, others):
        backend.bind([(keys.clone(), values.clone()) for keys, values in pool.kv])
        results = []
        for first, last in chunks:
            extra = pool.tokens(sum(length for _, length in others))
            # the sequence is the last row of its batch
            step = [
                torch.cat((other, own[first:last]))
                for own, other in zip((q, k, v), extra, strict=True)
            ]
            batch = AttentionBatch(
                [*(start for start, _ in others), first],
                [*(length for _, length in others), last - first],
                [*pool.blocks[1 : len(others) + 1], pool.blocks[0]],
            )
            out = backend.forward(*step, 0, options, backend.prepare(batch))
            results.append(out[first - last :])
        return torch.cat(results)

    edges = [0, *sorted(cuts), total]
    alone = run([(0, total)], [])
    assert torch.equal(run(list(zip(edges, edges[1:], strict=False)), neighbours), alone)


def test_deterministic_decode_equals_prefill_bit_for_bit():
    shape = CacheShape(1, 9, 3, 64, 16)
    pool = Pool(shape, [300], 1)
    options = AttentionOptions(0.125)
    backend = CpuAttention(shape, torch.float32, CPU, deterministic=True)
    q, k, v = pool.tokens(300)
    outs = []
    for edges in ([0, 300], [0, 250, *range(251, 301)]):
        backend.bind([(keys.clone(), values.clone()) for keys, values in pool.kv])
        parts = []
        for first, last in zip(edges, edges[1:], strict=False):
            batch = AttentionBatch([first], [last - first], pool.blocks)
            rows = slice(first, last)
            metadata = backend.prepare(batch)
            parts.append(backend.forward(q[rows], k[rows], v[rows], 0, options, metadata))
        outs.append(torch.cat(parts))
    assert torch.equal(*outs)


def test_many_rows_of_unlike_contexts_fall_into_few_buckets():
    shape = CacheShape(1, 9, 3, 64, 16)
    contexts = np.random.default_rng(0).integers(1, 4000, 64).tolist()
    pool = Pool(shape, contexts, 0)
    backend = CpuAttention(shape, torch.float32, CPU)
    backend.bind(pool.kv)
    starts = [context - 1 for context in contexts]
    metadata = backend.prepare(AttentionBatch(starts, [1] * 64, pool.blocks))
    backend.forward(*pool.tokens(64), 0, AttentionOptions(0.1), metadata)
    buckets = metadata.buckets[None]
    assert len(buckets) <= 40
    assert sum(len(bucket.targets) for bucket in buckets) == 64
