"""Native attention against the slow oracle, and its bits however a sequence is cut."""

from __future__ import annotations

import itertools

import pytest
import torch

from lmserve.attention.base import AttentionBatch, AttentionOptions, CacheShape
from lmserve.attention.native import NativeAttention
from lmserve.attention.sdpa import SdpaAttention

CPU = torch.device("cpu")
CLOSE = {torch.float32: 1e-5, torch.float16: 1e-5, torch.bfloat16: 1e-5}
OPTIONS = [
    AttentionOptions(scale, window, softcap)
    for scale, window, softcap in (
        (0.3, None, None), (0.3, 1, None), (0.2, 5, 3.0), (0.3, 64, None), (0.3, 300, 5.0)
    )
]  # fmt: skip


class Pool:
    """A cache of noise, block tables out of order, tokens to write."""

    def __init__(self, shape: CacheShape, contexts: list[int], dtype: torch.dtype, seed: int = 0):
        self.shape, self.dtype = shape, dtype
        self.generator = torch.Generator().manual_seed(seed)
        sizes = [-(-context // shape.block_size) for context in contexts]
        num_blocks = sum(sizes) + 3
        order = torch.randperm(num_blocks, generator=self.generator).tolist()
        self.blocks = [[order.pop() for _ in range(size)] for size in sizes]
        size = (num_blocks, shape.num_kv_heads, shape.block_size, shape.head_dim)
        self.kv = [(self.randn(*size).to(dtype), self.randn(*size).to(dtype))]

    def randn(self, *size: int) -> torch.Tensor:
        return torch.randn(*size, generator=self.generator)

    def tokens(self, count: int) -> list[torch.Tensor]:
        heads = (self.shape.num_heads, self.shape.num_kv_heads, self.shape.num_kv_heads)
        return [self.randn(count, each, self.shape.head_dim) for each in heads]

    def copy(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(keys.clone(), values.clone()) for keys, values in self.kv]


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("head_dim", [8, 12, 16, 64, 80, 128])
def test_equals_the_oracle(kernels, dtype, head_dim):
    starts, lens = [0, 39, 300, 255, 0, 511], [1, 1, 1, 2, 20, 40]
    contexts = [start + length for start, length in zip(starts, lens, strict=True)]
    heads = itertools.cycle([(3, 1), (6, 2), (2, 2), (9, 3), (8, 1)])
    for block_size, options in zip((1, 3, 16, 32, 16), OPTIONS, strict=True):
        shape = CacheShape(1, *next(heads), head_dim, block_size)
        pool = Pool(shape, contexts, dtype)
        q, k, v = pool.tokens(sum(lens))
        k, v = (each.to(dtype).float() for each in (k, v))  # the oracle writes no other
        batch = AttentionBatch(starts, lens, pool.blocks)
        ours, oracle = NativeAttention(shape, dtype, kernels), SdpaAttention(shape, dtype, CPU)
        caches = [pool.copy(), pool.copy()]
        ours.bind(caches[0])
        out = ours.forward(q, k, v, 0, options, ours.prepare(batch))
        oracle.bind(caches[1])
        expected = oracle.forward(q, k.to(dtype), v.to(dtype), 0, options, oracle.prepare(batch))
        torch.testing.assert_close(out, expected, atol=CLOSE[dtype], rtol=CLOSE[dtype])
        for got, wanted in zip(caches[0][0], caches[1][0], strict=True):
            assert torch.equal(got, wanted)


@pytest.mark.parametrize("dtype", CLOSE)
def test_what_is_written_is_rounded_as_torch_rounds(kernels, dtype):
    shape = CacheShape(1, 2, 2, 24, 4)
    pool = Pool(shape, [50], dtype)
    q, k, v = pool.tokens(50)
    k[3] *= 1e6
    v[4] *= 1e-7
    ours = NativeAttention(shape, dtype, kernels)
    ours.bind(pool.kv)
    ours.forward(q, k, v, 0, OPTIONS[0], ours.prepare(AttentionBatch([0], [50], pool.blocks)))
    for given, cache in zip((k, v), pool.kv[0], strict=True):
        held = cache[pool.blocks[0]].transpose(0, 1).flatten(1, 2)[:, :50].transpose(0, 1)
        assert torch.equal(held, given.to(dtype))


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_bits_do_not_depend_on_chunks_or_neighbours(kernels, dtype, options):
    shape, total = CacheShape(1, 6, 2, 16, 16), 530
    neighbours = [(0, 1), (37, 9), (600, 3)]
    contexts = [total, *(start + length for start, length in neighbours)]
    pool = Pool(shape, contexts, dtype)
    ours = NativeAttention(shape, dtype, kernels)
    own = pool.tokens(total)

    def run(edges: list[int], others: list[tuple[int, int]]) -> torch.Tensor:
        ours.bind(pool.copy())
        parts = []
        for first, last in itertools.pairwise(edges):
            more = pool.tokens(sum(length for _, length in others))
            step = [torch.cat((a, b[first:last])) for a, b in zip(more, own, strict=True)]
            batch = AttentionBatch(
                [*(start for start, _ in others), first],
                [*(length for _, length in others), last - first],
                [*pool.blocks[1 : len(others) + 1], pool.blocks[0]],
            )
            out = ours.forward(*step, 0, options, ours.prepare(batch))
            parts.append(out[first - last :])
        return torch.cat(parts)

    whole = run([0, total], [])
    assert torch.equal(run([0, 1, 8, 255, 256, 257, 300, 513, total], neighbours), whole)
    assert torch.equal(run([0, 250, *range(251, 270), 505, *range(506, 531)], []), whole)


def test_what_is_not_finite_stays_in_its_row(kernels):
    shape = CacheShape(1, 6, 2, 16, 4)
    pool = Pool(shape, [30, 30], torch.float16)
    ours = NativeAttention(shape, torch.float16, kernels)
    q, k, v = pool.tokens(4)
    batch = AttentionBatch([28, 28], [2, 2], pool.blocks)
    results = []
    for bad in (0.0, torch.nan, torch.inf, 1e6):  # the last is too large for the cache
        ours.bind(pool.copy())
        spoilt = v.clone()
        spoilt[1] += bad
        results.append(ours.forward(q, k, spoilt, 0, OPTIONS[0], ours.prepare(batch)))
    for result in results[1:]:
        assert not result[1].isfinite().any()
        assert torch.equal(result[2:], results[0][2:])


def test_a_row_longer_than_its_blocks_is_refused(kernels):
    ours = NativeAttention(CacheShape(1, 2, 2, 8, 4), torch.float16, kernels)
    ours.prepare(AttentionBatch([3], [5], [[0, 1]]))
    with pytest.raises(IndexError, match="longer than its blocks"):
        ours.prepare(AttentionBatch([3], [6], [[0, 1]]))


@pytest.mark.parametrize("head_dim", [8, 12, 24])
def test_what_a_step_left_behind_reaches_no_other(kernels, head_dim):
    """Memory between steps is kept: whatever a head does not fill of it must not count."""
    batch = AttentionBatch([0], [20], [list(range(5))])
    outs = []
    for bad in (0.0, torch.nan):
        for size in (32, head_dim):
            pool = Pool(CacheShape(1, 6, 2, size, 4), [20], torch.float32)
            ours = NativeAttention(pool.shape, torch.float32, kernels)
            ours.bind(pool.kv)
            q, k, v = pool.tokens(20)
            q, v = (each + (bad if size == 32 else 0.0) for each in (q, v))
            out = ours.forward(q, k, v, 0, OPTIONS[0], ours.prepare(batch))
        outs.append(out)
    assert outs[0].isfinite().all()
    assert torch.equal(*outs)
