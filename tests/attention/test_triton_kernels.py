"""The attention kernels against the oracle and against their twin. On a machine with a GPU they
run there, elsewhere in Triton's interpreter. Slots that no row sees hold what is not a number."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paged_steps import CPU, Step, options, rows, shapes

from lmserve.attention.base import AttentionOptions, CacheShape
from lmserve.attention.paged_torch import PagedTorchAttention
from lmserve.attention.probe import probe
from lmserve.attention.sdpa import SdpaAttention
from lmserve.attention.triton_paged import TritonAttention
from tests.kernels.compile import MAX_SHARED_BYTES, compile_for_h100

pytest.importorskip("triton")

from lmserve.attention.triton_decode import decode_scratch, paged_decode
from lmserve.attention.triton_prefill import paged_prefill, write_kv

DEVICE = torch.device("cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda")
FLOAT, HALF, BRAIN, FP8 = torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn
CLOSE = {FLOAT: 1e-5, HALF: 4e-3, BRAIN: 3e-2}
PLAIN = AttentionOptions(0.3)
SCALES = 0.5, 0.75  # of keys and values of 8 bits


def to_device(numbers: object) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int32, device=DEVICE)


def expected(step: Step, how: AttentionOptions, k_scale: float = 1.0, v_scale: float = 1.0):
    """What the oracle makes of the cache as it is, in float32."""
    oracle = SdpaAttention(step.shape, FLOAT, CPU)
    kv = [
        (each.float() * scale).transpose(1, 2)
        for each, scale in zip(step.kv, (k_scale, v_scale), strict=True)
    ]
    oracle.bind([tuple(kv)])
    return oracle.attend(step.qkv[0].float(), 0, how, oracle.prepare(step.batch))


def computed(step: Step, how: AttentionOptions, num_splits: int | None = None, **scales: object):
    """By the decode kernel where all rows are of one token, and the prefill kernel otherwise."""
    shape, batch = step.shape, step.batch
    contexts = [start + length for start, length in zip(batch.starts, batch.lens, strict=True)]
    width = max(map(len, batch.blocks))
    table = to_device([[*blocks, *[0] * (width - len(blocks))] for blocks in batch.blocks])
    q, keys, values = (each.to(DEVICE) for each in (step.qkv[0], *step.kv))
    out = torch.full_like(q, torch.nan)
    tensors = q, keys, values, table, to_device(contexts)
    layer = {"scale": how.scale, "window": how.window, "softcap": how.softcap}
    if max(batch.lens) == 1:
        sizes = (len(q), shape.num_heads, shape.num_kv_heads, shape.head_dim)
        scratch = decode_scratch(*sizes, DEVICE, num_splits)
        scratch.partial.fill_(torch.nan)
        scratch.lse.fill_(torch.nan)
        paged_decode(*tensors, out, scratch, **layer, **scales)
    else:
        starts = to_device([0, *torch.tensor(batch.lens).cumsum(0).tolist()])
        paged_prefill(*tensors, starts, out, max_query=max(batch.lens), **layer, **scales)
    return out.cpu()


def compare(step: Step, how: AttentionOptions, **more: object) -> None:
    out = computed(step, how, **more)
    close = CLOSE[step.dtype]
    torch.testing.assert_close(out.float(), expected(step, how), atol=close, rtol=close)


# --- decode --------------------------------------------------------------------------------------

# contexts of 1, shorter than a split, and with ends on and off the edges of tiles and blocks
STARTS = [0, 6, 63, 127, 128]


@pytest.mark.parametrize(
    ("shape", "how", "num_splits", "dtype"),
    [
        (CacheShape(1, 2, 2, 64, 16), PLAIN, None, FLOAT),
        (CacheShape(1, 6, 2, 80, 48), PLAIN, 3, FLOAT),
        (CacheShape(1, 8, 1, 128, 256), AttentionOptions(0.1, 100), 8, FLOAT),
        (CacheShape(1, 5, 1, 64, 64), AttentionOptions(0.3, 5, 4.0), 2, FLOAT),
        (CacheShape(1, 20, 1, 96, 16), AttentionOptions(0.3, None, 4.0), 1, HALF),
        (CacheShape(1, 2, 1, 256, 64), AttentionOptions(0.1), 4, BRAIN),
    ],
)
def test_decode(shape, how, num_splits, dtype):
    compare(Step(shape, STARTS, [1] * 5, dtype), how, num_splits=num_splits)


def test_infinity_where_no_row_sees_it_does_not_leak():
    step = Step(CacheShape(1, 2, 1, 32, 16), [4, 20], [1, 1])
    for each in step.kv:
        each[each.isnan()] = torch.inf
    compare(step, AttentionOptions(0.3, 3))


def test_a_row_is_the_same_bit_for_bit_whoever_its_neighbours_are():
    shape = CacheShape(1, 6, 2, 64, 16)
    many = Step(shape, [150, 3, 70], [1, 1, 1])
    alone = Step(shape, [150], [1])
    alone.kv, alone.batch = many.kv, replace(many.batch, starts=[150], lens=[1])
    alone.batch = replace(alone.batch, blocks=many.batch.blocks[:1])
    alone.qkv = [each[:1] for each in many.qkv]
    outs = [computed(step, PLAIN, num_splits=2) for step in (many, alone)]
    assert torch.equal(outs[0][:1], outs[1])


def test_few_rows_are_split_and_their_parts_have_room():
    scratch = decode_scratch(512, 32, 8, 128, DEVICE)
    for num_rows in range(1, 600):
        num_splits = scratch.splits(num_rows, 8)
        assert 1 <= num_splits <= 64
        assert num_splits == 1 or num_rows * 32 * num_splits <= len(scratch.partial)
    assert scratch.splits(1, 1) > 1


# --- prefill -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "how", "dtype"),
    [
        (CacheShape(1, 3, 1, 64, 16), PLAIN, FLOAT),
        (CacheShape(1, 2, 2, 80, 48), AttentionOptions(0.3, 20, 4.0), FLOAT),
        (CacheShape(1, 5, 1, 128, 64), AttentionOptions(0.1, 100), HALF),
        (CacheShape(1, 4, 2, 64, 256), AttentionOptions(0.3, None, 4.0), BRAIN),
    ],
)
def test_prefill(shape, how, dtype):
    """A decode, a chunk behind a context, a whole prompt, two tokens."""
    compare(Step(shape, [140, 70, 0, 62], [1, 20, 33, 2], dtype), how)


# --- 8 bits, and the write -----------------------------------------------------------------------


@pytest.mark.parametrize(("lens", "as_tensors"), [([1, 1, 1], True), ([1, 20, 3], False)])
def test_a_cache_of_8_bits_is_scaled(lens, as_tensors):
    step = Step(CacheShape(1, 4, 2, 64, 16), [0, 70, 40], lens)
    step.kv = [each.to(FP8) for each in step.kv]
    k_scale, v_scale = SCALES
    if as_tensors:
        k_scale, v_scale = torch.tensor(SCALES, device=DEVICE).split(1)
    out = computed(step, PLAIN, k_scale=k_scale, v_scale=v_scale)
    torch.testing.assert_close(out, expected(step, PLAIN, *SCALES), atol=1e-5, rtol=1e-5)


def test_the_backend_passes_its_probe():
    """Which writes too, and has a padding row."""
    backend = TritonAttention(CacheShape(1, 2, 1, 16, 8), FP8, DEVICE)
    probe(backend, (AttentionOptions(0.2, 100, 4.0),))


@pytest.mark.parametrize(
    ("dtype", "kv_dtype"), [(FLOAT, FLOAT), (FLOAT, HALF), (BRAIN, BRAIN), (FLOAT, FP8)]
)
def test_keys_and_values_are_written_where_they_belong(dtype, kv_dtype):
    """Out of the middle of a merged product, as the models have them."""
    generator = torch.Generator().manual_seed(0)
    # what a cache of 8 bits holds as it is, so that the interpreter need not round
    new = torch.randint(-8, 8, (5, 7, 80), generator=generator).to(DEVICE, dtype)
    slots = torch.tensor([7, 95, 0, 48, 50], device=DEVICE)
    cache = [torch.full((3, 48, 2, 80), 3.0, device=DEVICE).to(kv_dtype) for _ in range(2)]
    k, v = new[:, 3:5], new[:, 5:7]
    k_scale, v_scale = SCALES[:1] * 2 if kv_dtype == FP8 else (1.0, 1.0)
    write_kv(k, v, slots, *cache, k_scale=k_scale, v_scale=v_scale)
    for held, written in zip(cache, (k, v), strict=True):
        wanted = torch.full((3 * 48, 2, 80), 3.0, device=DEVICE)
        wanted[slots] = written.float() / k_scale
        assert torch.equal(held.float().flatten(0, 1), wanted)


def test_what_is_too_large_for_8_bits_becomes_the_largest():
    new = torch.tensor([448.0, 1e6, -torch.inf, 1.0], device=DEVICE).view(1, 1, 4)
    cache = [torch.zeros(1, 16, 1, 4, device=DEVICE).to(FP8) for _ in range(2)]
    write_kv(new, new, torch.tensor([2], device=DEVICE), *cache)
    assert cache[0][0, 2, 0].float().tolist() == [448.0, 448.0, -448.0, 1.0]


# --- more of it ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(600)
@settings(max_examples=40)
@given(shapes([16, 64, 80], [16, 48, 64]), rows(), options(), st.booleans(), st.integers(0, 99))
def test_any_rows(shape, case, how, decode, seed):
    starts, lens = case
    step = Step(shape, starts, [1] * len(lens) if decode else lens, FLOAT, seed)
    compare(step, how)


@pytest.mark.slow
@pytest.mark.timeout(600)
@settings(max_examples=20)
@given(shapes([64], [16, 48]), rows(), options(), st.integers(0, 99))
def test_the_twin_gives_the_same(shape, case, how, seed):
    step = Step(shape, *case, FLOAT, seed)
    twin = step.bind(PagedTorchAttention(shape, FLOAT, CPU))
    wanted = twin.attend(step.qkv[0], 0, how, twin.prepare(step.batch))
    torch.testing.assert_close(computed(step, how), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("launches", ["writes", "decodes", "prefills"])
def test_every_kernel_compiles_for_an_h100(launches):
    """And fits: in shared memory, and but for float32, which only checks use, in registers and
    on tensor cores."""
    for each in compile_for_h100(f"tests.attention.triton_launches:{launches}", 1200):
        assert each.shared_bytes <= MAX_SHARED_BYTES, each
        if each.constants.get("DOT_DTYPE") == "fp32":
            continue
        assert each.spilled_bytes <= 64, each
        if "DOT_DTYPE" in each.constants:
            assert each.wgmma or each.mma, each
