"""The sampling kernels against their twin: under Triton's interpreter, or on the GPU there is."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from lmserve.device.select import device_for
from lmserve.engine.plan import Row
from lmserve.engine.sampling.device import DeviceSampler, encoded
from lmserve.fused.sampling_base import Chosen, Settings
from lmserve.fused.sampling_plain import PlainSampling
from lmserve.fused.sampling_triton import Sizes, TritonSampling
from lmserve.sampling import SamplingParams
from tests.kernels.compile import MAX_SHARED_BYTES, compile_for_h100

DEVICE = device_for(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
# The interpreter of Triton 3.6 does so where a loop's bound is an argument.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")

SMALL = Sizes(chunk=64, step=128, group=8, num_wanted=8, capacity=32)


@pytest.fixture(autouse=True)
def numbers_as_on_a_gpu() -> Iterator[None]:
    """Numpy, which the interpreter computes with, warns of what is not finite."""
    torch.set_num_threads(1)
    with np.errstate(all="ignore"):
        yield


def randn(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def counts_of(size: tuple[int, int], seed: int = 0) -> torch.Tensor:
    """Of a few tokens: in the prompt only, or in the output."""
    source = np.random.default_rng(seed)
    counts = source.choice([0, 0, 0, 0, -1, 1, 3], size).astype(np.int16)
    return DEVICE.upload(counts)


def both(
    logits: torch.Tensor,
    params: list[dict[str, Any]],
    sizes: Sizes,
    *,
    counts: torch.Tensor | None = None,
    **options: bool,
) -> Chosen:
    """What the kernels choose; the twin chooses the same, and counts the same."""
    vocab_size = logits.shape[1]
    table = np.stack(
        [
            encoded(SamplingParams(**{"seed": at, **each}), vocab_size)
            for at, each in enumerate(params)
        ]
    )
    slots = DEVICE.upload(np.arange(len(params))[::-1].copy())
    given = DEVICE.upload(np.ascontiguousarray(table[::-1]))
    order = DEVICE.upload(np.arange(len(params)) * 5 + 3)
    chosen, drawn = [], []
    for ops in (PlainSampling(), TritonSampling(sizes)):
        own = None if counts is None else counts.clone()
        on_device = logits.to(DEVICE.torch_device)
        chosen.append(ops.draw(on_device, Settings(given, own), slots, order, **options))
        drawn.append(own)
    expected, got = chosen
    assert got.tokens.tolist() == expected.tokens.tolist()
    assert got.finite.tolist() == expected.finite.tolist()
    assert got.alive.tolist() == expected.alive.tolist()
    assert counts is None or torch.equal(*drawn)
    return got


def test_greedy_rows():
    logits = randn(5, 120)
    logits[1, 7] = logits[1, 110] = 10.0
    logits[2] = 0.5
    logits[3, 119] = torch.nan
    logits[4, 0] = -torch.inf
    for dtype in (torch.float32, torch.bfloat16):
        chosen = TritonSampling(SMALL).likeliest(logits.to(DEVICE.torch_device, dtype))
        best = logits.to(dtype).argmax(-1).tolist()
        assert chosen.tokens.tolist() == [best[0], 7, 0, 0, 0]
        assert chosen.finite.tolist() == [True, True, True, False, False]


def test_drawn_rows():
    """Of each kind, one takes the token from what was gathered."""
    params: list[dict[str, Any]] = [
        {"temperature": 1.0},
        {"temperature": 0.0},
        {"temperature": 0.7, "top_k": 5},
        {"temperature": 1.0, "top_p": 0.3, "min_p": 0.02},
        {"temperature": 0.0, "frequency_penalty": 0.5},
        {"temperature": 2.0, "top_k": 6, "top_p": 0.8, "repetition_penalty": 1.5},
        {"temperature": 1.0},
    ]
    logits = randn(7, 100) * 4
    logits[6, 99] = torch.nan
    both(logits.bfloat16(), params, SMALL, counts=counts_of((7, 100)))


def test_a_row_that_keeps_more_than_was_gathered():
    """Or of which more was gathered than there is room for: equal logits."""
    logits = torch.cat([randn(1, 90) * 0.1, torch.full((1, 90), -0.0)])
    params: list[dict[str, Any]] = [{"top_p": 0.95}, {"top_k": 50, "min_p": 0.5}]
    both(logits, params, Sizes(chunk=128, step=64, group=8, num_wanted=4, capacity=16))


def test_banned_tokens():
    logits = randn(3, 70)
    logits[0, 5:] = -torch.inf
    logits[1] = -torch.inf
    logits[2, 3], logits[2, 4] = -torch.inf, torch.nan
    params: list[dict[str, Any]] = [{"top_k": 9, "presence_penalty": 1.0}, {"top_p": 0.5}, {}]
    chosen = both(logits, params, SMALL, counts=counts_of((3, 70)), banned=True, counting=False)
    assert chosen.finite.tolist() == [True, True, False]
    assert chosen.alive.tolist() == [True, False, False]


def test_a_graph_replays_the_launches():
    rows = [
        Row(rid, [0], 5, [0], SamplingParams(seed=rid, **params), [1, 2, 3], 2)
        for rid, params in enumerate(({"frequency_penalty": 2.0}, {"top_k": 3}))
    ]
    graphs, logits = [], randn(2, 40).to(DEVICE.torch_device)
    slots, order = DEVICE.upload(np.array([2, 2])), DEVICE.upload(np.array([6, 6]))
    for kernels in ("twins", "triton"):
        sampler = DeviceSampler(2, 40, DEVICE, kernels)
        for row in rows:
            sampler.assign(row.rid, row)
        sampler.send()
        run = sampler.draw
        graphs.append(DEVICE.capture(lambda run=run: run(logits, slots, order, "drawn")))
    slots.copy_(DEVICE.upload(np.array([1, 0])))
    for step in range(2):
        logits.copy_(randn(2, 40, seed=step + 1))
        order += 1
        for graph in graphs:
            graph.replay()
        twin, kernels = (graph.out.tokens.tolist() for graph in graphs)
        assert twin == kernels


LEVELS = [-40.0, -2.0, -0.0, 0.0, 1.0, 1.5, 1.5, 6.0]


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # each takes seconds
)
@given(
    data=st.data(),
    vocab_size=st.integers(1, 150),
    sizes=st.sampled_from(
        [SMALL, Sizes(128, 32, 4, 100, 128), Sizes(32, 64, 16, 2, 8), Sizes(64, 64, 64, 1, 64)]
    ),
)
def test_any_row(data: st.DataObject, vocab_size: int, sizes: Sizes):
    values = st.sampled_from(LEVELS)
    drawn = data.draw(st.lists(values, min_size=1, max_size=vocab_size))
    row = torch.tensor(list(itertools.islice(itertools.cycle(drawn), vocab_size)))
    params = data.draw(
        st.fixed_dictionaries(
            {
                "temperature": st.sampled_from([0.0, 1e-4, 0.5, 1.0, 100.0]),
                "top_k": st.sampled_from([0, 1, 2, 7, 40, 1000]),
                "top_p": st.sampled_from([1.0, 0.9, 0.5, 1e-9]),
                "min_p": st.sampled_from([0.0, 0.1, 1.0]),
                "repetition_penalty": st.sampled_from([1.0, 1.3]),
                "frequency_penalty": st.sampled_from([0.0, 0.25]),
                "seed": st.integers(-(2**63), 2**63 - 1),
            }
        )
    )
    logits = torch.stack([row, randn(vocab_size, seed=vocab_size) * data.draw(st.floats(0.01, 9))])
    counts = counts_of((2, vocab_size)) if data.draw(st.booleans()) else None
    both(logits, [params, params], sizes, counts=counts)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_vocabulary_of_a_real_size():
    params: list[dict[str, Any]] = [
        {"temperature": 1.0},
        {"temperature": 0.7, "top_k": 50, "top_p": 0.9},
        {"temperature": 1.0, "top_p": 0.95},
        {"temperature": 1.0, "min_p": 0.05},
    ]
    both(randn(4, 151_936) * 3, params, Sizes.of(151_936))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_launch_compiles_for_an_h100():
    compiled = compile_for_h100("tests.engine.sampling_launches:everything", timeout_s=500)
    names = {"maxima_kernel", "likeliest_kernel", "settle_kernel", "weigh_kernel", "draw_kernel"}
    assert {each.name for each in compiled} == names
    for each in compiled:
        assert each.shared_bytes <= MAX_SHARED_BYTES
        assert each.spilled_bytes == 0, each
