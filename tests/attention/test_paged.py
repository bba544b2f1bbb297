"""The paged backends against the slow oracle. Libraries that need a GPU have stand-ins."""

from __future__ import annotations

import ast
import inspect
import sys
from importlib.util import find_spec
from pathlib import Path

import flash_stand_ins
import pytest
import torch
from flash_stand_ins import (
    install_flash_2,
    install_flash_3,
    install_flash_4,
    install_varlen,
    varlen_attn_2_11,
    varlen_attn_2_13,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paged_steps import CPU, Step, check, options, rows, shapes

from lmserve.attention import varlen
from lmserve.attention.base import AttentionBatch, AttentionOptions, CacheShape
from lmserve.attention.flash import FlashAttention
from lmserve.attention.flash3 import Flash3Attention
from lmserve.attention.flash4 import Flash4Attention
from lmserve.attention.paged import PagedMetadata
from lmserve.attention.paged_torch import PagedTorchAttention
from lmserve.attention.triton_paged import TritonAttention
from lmserve.attention.varlen import PagedVarlenAttention, VarlenAttention
from lmserve.device.select import device_for

ALL_HEAD_DIMS = [64, 80, 96, 128, 256]
BLOCK_SIZES = [1, 3, 16, 256]
FEW = settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
HALF = {"dtype": torch.float16, "close": 4e-3}
PLAIN = AttentionOptions(0.3)


def compare(backend, shape, case, how, seed, dtype, close):
    step = Step(shape, *case, dtype, seed)
    check(step, backend(shape, dtype, CPU), how, close)


@settings(max_examples=15)
@given(shapes([4, *ALL_HEAD_DIMS], BLOCK_SIZES), rows(), options(), st.integers(0, 99))
def test_the_twin_equals_the_oracle(shape, case, how, seed):
    compare(PagedTorchAttention, shape, case, how, seed, torch.float32, 1e-5)


def test_the_twin_cuts_what_is_too_large_at_once(monkeypatch):
    monkeypatch.setattr("lmserve.attention.paged_torch.MAX_GATHERED", 600)
    shape = CacheShape(1, 4, 2, 8, 4)
    compare(
        PagedTorchAttention, shape, ([30, 2, 0, 9], [1, 1, 50, 7]), PLAIN, 0, torch.float32, 1e-5
    )


@pytest.mark.parametrize("how", [PLAIN, AttentionOptions(0.3, 9, 5.0)])
def test_the_triton_kernels_are_given_what_they_ask_for(how):
    shape = CacheShape(1, 2, 1, 16, 16)
    compare(TritonAttention, shape, ([40, 30, 0], [1, 5, 20]), how, 1, torch.float32, 1e-4)


@FEW
@given(shapes(ALL_HEAD_DIMS, [256, 512]), rows(), options(), st.integers(0, 99))
def test_flash_attn_2(monkeypatch, shape, case, how, seed):
    install_flash_2(monkeypatch)
    compare(FlashAttention, shape, case, how, seed, **HALF)


@FEW
@given(shapes(ALL_HEAD_DIMS, BLOCK_SIZES), rows(), options(), st.integers(0, 99))
def test_flash_attn_3(monkeypatch, shape, case, how, seed):
    install_flash_3(monkeypatch)
    compare(Flash3Attention, shape, case, how, seed, **HALF)


@FEW
@given(shapes([64, 96, 128], [256]), rows(), options(), st.integers(0, 99), st.booleans())
def test_flash_attn_2_with_the_prefill_of_4(monkeypatch, shape, case, how, seed, whole):
    install_flash_4(monkeypatch)
    starts, lens = case
    if whole:
        starts = [start if length == 1 else 0 for start, length in zip(*case, strict=True)]
    compare(Flash4Attention, shape, (starts, lens), how, seed, **HALF)


@pytest.mark.parametrize(
    ("case", "split"),
    [(([40, 9], [5, 5]), [10]), (([40, 9], [5, 6]), []), (([40, 9, 7], [1, 17, 17]), [1])],
)
def test_rows_of_as_few_tokens_are_split_like_decodes(monkeypatch, case, split):
    install_flash_2(monkeypatch)
    calls = []

    def noted(q, *rest, **kwargs):
        calls.append(q.shape[0] * q.shape[1])
        return flash_stand_ins.flash_attn_with_kvcache(q, *rest, **kwargs)

    monkeypatch.setattr(sys.modules["flash_attn"], "flash_attn_with_kvcache", noted)
    shape = CacheShape(1, 4, 2, 64, 256)
    for how in (PLAIN, AttentionOptions(0.3, 7, 3.0)):
        compare(FlashAttention, shape, case, how, 0, **HALF)
    assert calls == split * 2


def test_version_4_runs_where_prompts_are_whole_and_only_there(monkeypatch):
    install_flash_4(monkeypatch)
    calls = []

    def noted(*args, **kwargs):
        calls.append(len(args[0]))
        return flash_stand_ins.flash_4_varlen_func(*args, **kwargs)

    module = sys.modules["flash_attn.cute.interface"]
    monkeypatch.setattr(module, "flash_attn_varlen_func", noted)
    shape = CacheShape(1, 4, 2, 64, 256)
    for starts, lens in [([40, 0, 0], [1, 5, 9]), ([40, 0, 3], [1, 5, 9]), ([40, 7], [1, 1])]:
        compare(Flash4Attention, shape, (starts, lens), PLAIN, 0, **HALF)
    assert calls == [14]


@pytest.fixture
def without_triton(monkeypatch):
    """Who decodes for `varlen` is the twin: the interpreter is slow."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.mark.parametrize(
    ("kind", "function", "block_sizes"),
    [
        (VarlenAttention, varlen_attn_2_11, BLOCK_SIZES),
        (VarlenAttention, varlen_attn_2_13, BLOCK_SIZES),
        (PagedVarlenAttention, varlen_attn_2_13, [256]),
    ],
)
@FEW
@given(data=st.data(), seed=st.integers(0, 99))
def test_varlen_attn(monkeypatch, without_triton, kind, function, block_sizes, data, seed):
    install_varlen(monkeypatch, function)
    shape = data.draw(shapes(ALL_HEAD_DIMS, block_sizes))
    compare(kind, shape, data.draw(rows()), data.draw(options()), seed, **HALF)


@pytest.mark.parametrize("limit", [1, 60, 10**9])
def test_varlen_attn_gathers_no_more_than_it_may(monkeypatch, without_triton, limit):
    calls = []

    def noted(query, key, *rest, **kwargs):
        calls.append(len(key))
        return varlen_attn_2_11(query, key, *rest, **kwargs)

    def signed(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, **kwargs):
        return noted(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, **kwargs)

    install_varlen(monkeypatch, signed)
    monkeypatch.setattr(varlen, "MAX_GATHERED_BYTES", limit * 2 * 64 * 2)
    shape = CacheShape(1, 4, 2, 64, 16)
    case = ([50, 20, 0, 30, 3], [1, 10, 25, 10, 60])
    compare(VarlenAttention, shape, case, PLAIN, 0, **HALF)
    assert calls == {1: [30, 25, 40, 63], 60: [55, 40, 63], 10**9: [158]}[limit]


def test_the_stand_in_has_the_signature_of_this_torch():
    if not torch.__version__.startswith("2.13."):
        pytest.skip("it was read from torch 2.13")
    tree = ast.parse(Path(find_spec("torch.nn.attention.varlen").origin).read_text())
    real = next(each for each in tree.body if getattr(each, "name", None) == "varlen_attn").args
    names = [each.arg for each in (*real.args, *real.kwonlyargs)]
    assert names == list(inspect.signature(varlen_attn_2_13).parameters)


def test_a_cache_of_float8_is_written_and_read():
    fp8 = torch.float8_e4m3fn
    shape = CacheShape(1, 4, 2, 16, 4)
    step = Step(shape, [0, 9, 3], [1, 1, 6], torch.bfloat16)
    step.kv = [each.to(fp8).to(torch.bfloat16) for each in step.kv]
    step.qkv[1:] = [each.to(fp8).to(torch.bfloat16) for each in step.qkv[1:]]
    expected, _ = step.expected(PLAIN)
    backend = PagedTorchAttention(shape, fp8, CPU)
    keys, values = (each.to(fp8) for each in step.kv)
    backend.bind([(keys, values)])
    out = backend.forward(*step.qkv, 0, PLAIN, backend.prepare(step.batch))
    torch.testing.assert_close(out.float(), expected, atol=1e-2, rtol=1e-2)


def test_what_is_too_large_for_float8_becomes_its_largest():
    shape = CacheShape(1, 1, 1, 4, 4)
    backend = PagedTorchAttention(shape, torch.float8_e4m3fn, CPU)
    keys, values = (torch.zeros(2, 4, 1, 4).to(torch.float8_e4m3fn) for _ in range(2))
    backend.bind([(keys, values)])
    k = torch.tensor([1000.0, -1000.0, 500.0, 2.0]).view(1, 1, 4)
    backend.write(k, k, 0, backend.prepare(AttentionBatch([0], [1], [[1]])))
    assert keys[1, 0, 0].float().tolist() == [448.0, -448.0, 448.0, 2.0]


# --- metadata ------------------------------------------------------------------------------------


def test_metadata_says_where_everything_is():
    backend = PagedTorchAttention(CacheShape(1, 1, 1, 4, 4), torch.float32, CPU)
    batch = AttentionBatch([5, 0, 2, 0], [1, 1, 4, 3], [[7, 3], [9], [1, 8], [6]])
    metadata = backend.prepare(batch)
    assert metadata.slots.tolist() == [13, 36, 6, 7, 32, 33, 24, 25, 26]
    assert metadata.table.tolist() == [[7, 3], [9, 9], [1, 8], [6, 6]]
    assert metadata.context_lens.tolist() == [6, 1, 6, 3]
    assert metadata.query_starts.tolist() == [0, 1, 2, 6, 9]
    assert (metadata.max_query, metadata.max_context, metadata.num_decodes) == (4, 6, 2)
    kinds = {metadata.table.dtype, metadata.context_lens.dtype, metadata.query_starts.dtype}
    assert kinds == {torch.int32} and metadata.slots.dtype == torch.int64
    later = metadata.prefill
    assert (later.lens, later.contexts, later.fresh) == ([4, 3], [6, 3], False)
    assert later.query_starts.tolist() == [0, 4, 7] and later.key_starts.tolist() == [0, 6, 9]
    assert later.key_slots is None  # nobody gathers
    fresh = backend.prepare(AttentionBatch([5, 0, 0], [1, 2, 1], [[7, 3], [9], [1]])).prefill
    assert fresh.fresh and fresh.key_slots.tolist() == [36, 37, 4]
    backend.gathers = True
    again = backend.prepare(batch).prefill
    assert again.key_slots.tolist() == [4, 5, 6, 7, 32, 33, 24, 25, 26]
    assert later.table.tolist() == [[1, 8], [6, 6]]


def test_metadata_of_decodes_alone_is_that_of_a_step_without_more():
    backend = PagedTorchAttention(CacheShape(1, 1, 1, 4, 4), torch.float32, CPU)
    backend.bind([])
    batch = AttentionBatch([5, 0], [1, 1], [[7, 3], [9]])
    one = backend.prepare(batch)
    other = backend.decode_metadata(one.slots, one.table, one.context_lens, 6)
    assert one.prefill is None
    for name in PagedMetadata.__slots__:
        first, second = getattr(one, name), getattr(other, name)
        assert first is second or (
            first == second
            if isinstance(first, int)
            else torch.equal(first, second) and first.dtype == second.dtype
        )


@pytest.mark.parametrize("kind", [PagedTorchAttention, TritonAttention])
def test_a_graph_replays_decodes_on_what_its_tensors_hold(kind):
    """As the runner does: one graph, rows of other sequences each time, the last a padding row."""
    assert kind.capturable
    shape = CacheShape(1, 2, 1, 16, 4)
    how = AttentionOptions(0.3, 7)
    step = Step(shape, [21, 3, 13], [1, 1, 1])
    backend = step.bind(kind(shape, torch.float32, CPU))
    spare = step.num_blocks
    table = torch.full((2, 6), spare, dtype=torch.int32)
    context_lens = torch.ones(2, dtype=torch.int32)
    slots = torch.full((2,), spare * 4)
    q, k, v = (torch.zeros_like(each[:2]) for each in step.qkv)
    metadata = backend.decode_metadata(slots, table, context_lens, 24)
    graph = device_for(CPU).capture(lambda: backend.forward(q, k, v, 0, how, metadata))
    expected, cache = step.expected(how)
    full = backend.prepare(step.batch)
    for rows_of in ([0, 1], [2]):
        count = len(rows_of)
        slots.fill_(spare * 4)[:count] = full.slots[rows_of]
        table.fill_(0)[:count, :6] = full.table[rows_of]
        context_lens.fill_(1)[:count] = full.context_lens[rows_of]
        table[count:] = spare
        for mine, given_ in zip((q, k, v), step.qkv, strict=True):
            mine.fill_(1.0)[:count] = given_[rows_of]
        graph.replay()
        torch.testing.assert_close(graph.out[:count], expected[rows_of], atol=1e-4, rtol=1e-4)
        assert graph.out.isfinite().all()
    for held, wanted in zip(backend.kv[0], cache, strict=True):
        assert torch.equal(held[:-1].nan_to_num(7.0), wanted[:-1].nan_to_num(7.0))
