"""The KV tensors in both layouts: what is done to them, against one plain tensor."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from tiny import GREEDY, LLAMA, prompts_of, random_model, tiny_runner

from lmserve.attention.base import CacheShape
from lmserve.engine.cache import tensors
from lmserve.engine.cache.tensors import KVCache
from lmserve.engine.plan import BlockCopy, Row, StepPlan

torch.set_num_threads(1)
CPU = torch.device("cpu")
FP8 = torch.float8_e4m3fn
NUM_BLOCKS = 6
LAYOUTS = pytest.mark.parametrize("tokens_first", [False, True])


def made(block_size=4, dtype=torch.float32, tokens_first=False, seed=0):
    shape = CacheShape(2, 7, 7, 5, block_size)
    cache = KVCache(shape, NUM_BLOCKS, dtype, CPU, tokens_first)
    generator = torch.Generator().manual_seed(seed)
    for pair in cache.layers:
        for each in pair:
            each.copy_(torch.randn(each.shape, generator=generator).to(dtype))
    return cache


def plain(cache):
    """(layers and parts, blocks, block size, kv heads, head_dim) of the blocks there are."""
    found = torch.stack([each.float() for pair in cache.layers for each in pair])
    if cache.layers[0][0].shape[1] == 7:
        found = found.transpose(2, 3)
    return found[:, :NUM_BLOCKS].clone()


@LAYOUTS
def test_shapes_and_the_spare_block(tokens_first):
    cache = KVCache(CacheShape(2, 7, 7, 5, 4), NUM_BLOCKS, torch.float16, CPU, tokens_first)
    expected = (NUM_BLOCKS + 1, 4, 7, 5) if tokens_first else (NUM_BLOCKS, 7, 4, 5)
    assert [each.shape for pair in cache.layers for each in pair] == [expected] * 4
    assert all(each.is_contiguous() for pair in cache.layers for each in pair)
    assert all(each.data_ptr() % 64 == 0 for pair in cache.layers for each in pair)
    assert not any(each.any() for pair in cache.layers for each in pair)
    assert cache.token_bytes == 2 * 2 * 7 * 5 * 2


blocks = st.integers(0, NUM_BLOCKS - 1)


@st.composite
def copies(draw):
    targets = draw(st.lists(blocks, min_size=1, max_size=4, unique=True))
    return [BlockCopy(draw(blocks), target, draw(st.integers(1, 4))) for target in targets]


@settings(max_examples=20)
@given(copies(), st.booleans(), st.sampled_from([torch.float32, torch.bfloat16, FP8]))
def test_a_copy_takes_the_tokens_it_is_asked_for_and_no_more(asked, tokens_first, dtype):
    cache = made(dtype=dtype, tokens_first=tokens_first)
    before = plain(cache)
    spare = [each[-1].float() for each in cache.layers[1]]
    expected = before.clone()
    for copy in asked:
        expected[:, copy.target, : copy.num_tokens] = before[:, copy.source, : copy.num_tokens]
    cache.copy(asked)
    assert torch.equal(plain(cache), expected)
    if tokens_first:
        for each, was in zip(cache.layers[1], spare, strict=True):
            assert torch.equal(each[-1].float(), was)


@LAYOUTS
def test_a_scrub_leaves_zeros_even_where_there_was_none(tokens_first):
    cache = made(tokens_first=tokens_first)
    for pair in cache.layers:
        for each in pair:
            each[[1, 4]] = torch.nan
    cache.scrub([4, 1])
    after = plain(cache)
    assert not after[:, [1, 4]].any()
    assert after[:, [0, 2, 3, 5]].all()
    cache.scrub([])
    cache.copy([])
    assert torch.equal(plain(cache), after)


@pytest.mark.parametrize("at_once", [1, 2**26])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, FP8])
def test_tokens_go_from_one_layout_to_the_other_in_slices(monkeypatch, at_once, dtype):
    monkeypatch.setattr(tensors, "MAX_MOVED_BYTES", at_once)
    heads, tokens = made(4, dtype), made(3, dtype, tokens_first=True, seed=1)
    data = heads.read([5, 0, 2], 10)
    assert len(data) == 10 * heads.token_bytes
    others = plain(tokens)[:, [1, 5]]
    tokens.write([4, 3, 0, 2], 10, bytearray(data))
    assert tokens.read([4, 3, 0, 2], 10) == data
    expected = plain(heads)[:, [5, 0, 2]].flatten(1, 2)[:, :10]
    written = plain(tokens)[:, [4, 3, 0, 2]].flatten(1, 2)
    assert torch.equal(written[:, :10], expected)
    assert not written[:, 10:].any()  # what is left of the last block
    assert torch.equal(plain(tokens)[:, [1, 5]], others)
    back = made(4, dtype, seed=2)
    back.write([1, 2, 3], 10, bytearray(tokens.read([4, 3, 0, 2], 10)))
    assert back.read([1, 2, 3], 10) == data


@pytest.mark.parametrize(("attention", "block_size"), [("cpu", 4), ("paged", 4), ("paged", 64)])
def test_a_sequence_goes_on_from_the_copied_beginning_of_anothers_block(attention, block_size):
    runner = tiny_runner(
        random_model(transformers.LlamaConfig(**LLAMA)), attention=attention, block_size=block_size
    )
    one, other = prompts_of(97, [11, 15], seed=3)
    other[:10] = one[:10]
    (expected,) = runner.run(StepPlan([Row(0, other, 0, [1, 6, 3, 8], GREEDY)])).tokens.values()
    runner.run(StepPlan([Row(1, one, 0, [5, 9, 2], GREEDY)]))
    whole, part = divmod(10, block_size)
    blocks = [*[5, 9, 2][:whole], 7, 4, 10]
    plan = StepPlan(
        [Row(2, other[10:], 10, blocks, GREEDY)], [BlockCopy([5, 9, 2][whole], 7, part)]
    )
    assert runner.run(plan).tokens == {2: expected}
