"""Sampling on the device, by its twin in plain torch, against the sampler of the host."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmserve.device.base import Numbers
from lmserve.device.host import HostDevice
from lmserve.engine.plan import Row
from lmserve.engine.sampling.changes import change
from lmserve.engine.sampling.device import DeviceSampler, encoded
from lmserve.engine.sampling.logprobs import DeviceLogprobs, tell
from lmserve.engine.sampling.rules import Rules
from lmserve.engine.sampling.sampler import sample, stream_of, uniform
from lmserve.fused.sampling_base import MAX_COUNT, Chosen, Column
from lmserve.fused.sampling_plain import kept_tokens, penalise, weights_of
from lmserve.fused.sampling_plain import uniform as device_uniform
from lmserve.sampling import Grammar, SamplingParams

GREEDY = {"temperature": 0.0}
MIXED: list[dict[str, Any]] = [
    {"temperature": 1.0},
    GREEDY,
    {"temperature": 0.6, "top_k": 7},
    {"temperature": 1.3, "top_p": 0.8},
    {"temperature": 1.0, "min_p": 0.1},
    {"temperature": 2.0, "top_k": 30, "top_p": 0.9, "min_p": 0.01},
    {"temperature": 1.0, "top_p": 0.999},
    {"temperature": 0.0, "repetition_penalty": 1.4},
    {"temperature": 0.8, "frequency_penalty": 0.7, "presence_penalty": -0.4},
    {"temperature": 1.0, "repetition_penalty": 0.7, "top_p": 0.5},
]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


class Uploads(HostDevice):
    """Notes the sizes of what is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[int] = []

    def upload(self, numbers: Numbers) -> torch.Tensor:
        self.sent.append(len(numbers))
        return super().upload(numbers)


def row_of(rid: int, params: dict[str, Any], **fields: Any) -> Row:
    source = random.Random(rid)
    history = [source.randrange(40) for _ in range(20)]
    sampling = SamplingParams(**{"seed": rid * 7919 - 3, **params})
    given = {"history": history, "num_prompt_tokens": 5, "rules": Rules.of(sampling), **fields}
    return Row(rid, [0], 9 + rid, [0], sampling, **given)


def sampler_of(rows: Sequence[Row], vocab_size: int, device: HostDevice) -> DeviceSampler:
    sampler = DeviceSampler(max(row.rid for row in rows) + 1, vocab_size, device, "twins")
    for row in rows:
        sampler.assign(row.rid, row)
    sampler.send()
    return sampler


def tensors_of(rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """Their slots and indices."""
    return torch.tensor([row.rid for row in rows]), torch.tensor([row.context_len for row in rows])


def told(chosen: Chosen) -> list[int | None]:
    """As `sample` tells it."""
    pairs = zip(chosen.tokens.tolist(), chosen.alive.tolist(), strict=True)
    return [token if alive else None for token, alive in pairs]


def randn(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


@given(
    st.lists(
        st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**40)), min_size=1, max_size=20
    )
)
def test_uniform_numbers_are_those_of_the_host(pairs):
    seeds = np.array([stream_of(seed) for seed, _ in pairs], dtype=np.uint64).view(np.int64)
    indices = torch.tensor([index for _, index in pairs])
    drawn = device_uniform(torch.from_numpy(seeds), indices)
    assert drawn.tolist() == [uniform(seed, index) for seed, index in pairs]


@pytest.mark.parametrize(("dtype", "vocab_size"), [(torch.float32, 300), (torch.bfloat16, 120)])
@pytest.mark.parametrize("spread", [0.05, 4.0])
def test_tokens_are_those_of_the_host(dtype, vocab_size, spread):
    """Of every kind of row, in one batch. Bfloat16 has many ties, and the host keeps their order
    where it sorts the whole row."""
    rows = [row_of(rid, MIXED[rid % len(MIXED)]) for rid in range(60)]
    logits = (randn(60, vocab_size) * spread).to(dtype)
    kept = logits.clone()
    sampler = sampler_of(rows, vocab_size, HostDevice())
    chosen = sampler.draw(logits, *tensors_of(rows), "drawn")
    assert told(chosen) == sample(kept.to(torch.float32, copy=True), rows)
    assert torch.equal(logits, kept)
    assert chosen.finite.all()


def test_the_greedy_token_is_the_first_of_equals():
    logits = torch.zeros(3, 50)
    logits[0, 17] = logits[0, 30] = 1.0
    logits[1, 49] = 1.0
    sampler = DeviceSampler(3, 50, HostDevice(), "twins")
    slots, indices = torch.arange(3), torch.ones(3, dtype=torch.int64)
    for kind in ("greedy", "drawn"):
        assert sampler.draw(logits, slots, indices, kind).tokens.tolist() == [17, 49, 0]


@pytest.mark.parametrize("kind", ["greedy", "drawn", "late"])
def test_a_row_that_is_not_finite_fails_alone(kind):
    rows = [row_of(rid, {"temperature": 1.0, "frequency_penalty": 0.1}) for rid in range(5)]
    logits = randn(5, 64)
    sampler = sampler_of(rows, 64, HostDevice())
    slots, indices = tensors_of(rows)
    good = [0, 3]
    alone = sampler_of(rows, 64, HostDevice()).draw(
        logits[good], slots[good], indices[good], "greedy" if kind == "greedy" else "drawn"
    )
    for at, value in ((1, math.nan), (2, math.inf), (4, -math.inf)):
        logits[at, 5] = value
    if kind == "late":
        chosen = sampler.draw_late(logits, rows, slots, indices)
    else:
        chosen = sampler.draw(logits, slots, indices, kind)
    assert chosen.finite.tolist() == chosen.alive.tolist() == [True, False, False, True, False]
    assert chosen.tokens[[1, 2, 4]].tolist() == [0, 0, 0]
    assert chosen.tokens[good].tolist() == alone.tokens.tolist()


@given(
    st.lists(st.sampled_from([-3.0, -1.0, 0.0, 0.5, 0.5001, 2.0, 9.0]), min_size=1, max_size=30),
    st.sampled_from([1e-4, 0.5, 1.0, 100.0]),
    st.sampled_from([0, 1, 3, 1000]),
    st.sampled_from([1.0, 0.9, 0.4, 1e-9]),
    st.sampled_from([0.0, 0.2, 1.0]),
)
def test_the_tokens_kept_are_those_of_the_definition(values, temperature, top_k, top_p, min_p):
    """Sorted, the first of equals first; one step after another, in exact arithmetic."""
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    logits = torch.tensor(values).sort(descending=True, stable=True).values[None]
    weights = weights_of(logits, logits[:, 0], torch.tensor([temperature]))
    table = torch.from_numpy(encoded(params, len(values)))[None]
    kept = kept_tokens(weights, table, table.view(torch.float64))[0]

    expected = weights[0].tolist()
    expected = [weight for weight in expected if weight >= min_p * expected[0]]
    expected = expected[: top_k or None]
    total, mass, num = sum(expected), 0, 0
    while num < len(expected) and (num == 0 or mass < top_p * total):
        mass += expected[num]
        num += 1
    assert weights[0][kept].tolist() == weights[0, : len(kept.nonzero())].tolist()
    assert mass == weights[0][kept].sum()


def test_frequencies_follow_the_distribution():
    count, vocab_size = 4000, 12
    logits = randn(vocab_size, seed=3) * 2
    params = {"temperature": 1.5, "top_k": 9, "top_p": 0.9}
    rows = [row_of(rid, params) for rid in range(count)]
    sampler = sampler_of(rows, vocab_size, HostDevice())
    drawn = sampler.draw(logits.repeat(count, 1), *tensors_of(rows), "drawn").tokens
    shares = (logits / 1.5).softmax(-1)
    order = shares.argsort(descending=True)[:9]
    before = shares[order].cumsum(0) - shares[order]
    kept = order[before < 0.9 * shares[order].sum()]
    expected = count * shares[kept] / shares[kept].sum()
    seen = drawn.bincount(minlength=vocab_size)[kept]
    assert seen.sum() == count
    freedom = len(kept) - 1
    assert ((seen - expected) ** 2 / expected).sum() <= freedom + 4 * math.sqrt(2 * freedom) + 4


def test_a_seeded_row_does_not_depend_on_its_batch():
    rows = [row_of(rid, MIXED[rid % len(MIXED)]) for rid in range(20)]
    logits, (slots, indices) = randn(20, 200), tensors_of(rows)
    together = sampler_of(rows, 200, HostDevice()).draw(logits, slots, indices, "drawn").tokens
    for order in ([19, 3, 7, 8], [12], list(range(19, -1, -1))):
        sampler = sampler_of(rows, 200, HostDevice())
        again = sampler.draw(logits[order], slots[order], indices[order], "drawn").tokens
        assert again.tolist() == together[order].tolist()


def test_penalties_are_those_of_the_host():
    """In float32, where the host has float64. Tokens beyond the vocabulary are token 0's."""
    source = random.Random(0)
    rows = []
    for rid in range(50):
        history = [source.randrange(45) for _ in range(source.randrange(60))]
        params = {
            "repetition_penalty": source.choice([1.0, 0.01, source.uniform(0.5, 2)]),
            "presence_penalty": source.choice([0.0, source.uniform(-2, 2)]),
            "frequency_penalty": source.choice([0.0, source.uniform(-2, 2)]),
        }
        num_prompt = source.randrange(len(history) + 1)
        rows.append(row_of(rid, params, history=history, num_prompt_tokens=num_prompt))
    settings = sampler_of(rows, 40, HostDevice())._settings
    assert settings.counts is not None
    logits = randn(50, 40) * 8
    changed = penalise(logits, settings.counts[:50], settings.numbers[:50])
    change(logits, rows, [row.sampling for row in rows], None)
    torch.testing.assert_close(changed, logits, rtol=1e-5, atol=1e-5)


def test_a_graph_draws_counts_and_draws_again():
    """Replays of one graph, of which the host reads nothing, are as steps of the host's sampler:
    each sees what the one before it drew."""
    vocab_size, num_steps = 50, 12
    rows = [row_of(rid, MIXED[rid % len(MIXED)]) for rid in range(10)]
    device = HostDevice()
    sampler = sampler_of(rows, vocab_size, device)
    padding = len(rows)
    slots = torch.full((12,), padding)
    indices, logits = torch.zeros(12, dtype=torch.int64), torch.zeros(12, vocab_size)
    before = sampler._settings.counts.clone()
    graph = device.capture(lambda: sampler.draw(logits, slots, indices, "drawn"))
    assert torch.equal(before, sampler._settings.counts)  # padding rows count nothing
    slots[:10], first = tensors_of(rows)
    histories = [list(row.history) for row in rows]
    for step in range(num_steps):
        logits.copy_(randn(12, vocab_size, seed=step))
        indices[:10] = first + step
        graph.replay()
        now = [
            Row(row.rid, [0], row.start + step, [0], row.sampling, history, row.num_prompt_tokens)
            for row, history in zip(rows, histories, strict=True)
        ]
        assert graph.out.tokens[:10].tolist() == sample(logits[:10].clone(), now)
        for history, token in zip(histories, graph.out.tokens.tolist(), strict=False):
            history.append(token)


def test_greedy_rows_are_captured_too():
    device, logits = HostDevice(), randn(4, 90)
    sampler = DeviceSampler(4, 90, device, "twins")
    slots, indices = torch.arange(4), torch.zeros(4, dtype=torch.int64)
    graph = device.capture(lambda: sampler.draw(logits, slots, indices, "greedy"))
    logits.copy_(randn(4, 90, seed=1))
    graph.replay()
    assert graph.out.tokens.tolist() == logits.argmax(-1).tolist()


def test_only_what_is_new_is_sent():
    device = Uploads()
    sampler = DeviceSampler(8, 100, device, "twins")
    device.sent.clear()
    sampler.assign(0, row_of(0, GREEDY))
    sampler.send()
    assert device.sent == []  # all slots are greedy at first
    sampler.assign(1, row_of(1, {"temperature": 1.0}))
    sampler.assign(2, row_of(2, {"temperature": 0.5}))
    sampler.send()
    assert len(device.sent) == 1
    sampler.assign(1, row_of(1, {"temperature": 1.0}))
    sampler.send()
    sampler.send()
    assert len(device.sent) == 1
    assert sampler.generation == 0
    sampler.assign(1, row_of(1, {"temperature": 1.0, "presence_penalty": 1.0}))
    sampler.send()
    assert len(device.sent) == 3
    assert sampler.generation == 1
    sampler.assign(1, row_of(1, {"temperature": 1.0}))
    sampler.send()
    assert sampler.generation == 1


def test_a_sequence_that_comes_back_is_counted_anew():
    """After a preemption, or in the place of another: the counts are those of the history."""
    params = {"temperature": 0.0, "frequency_penalty": 1.0}
    row = row_of(0, params, history=[1, 2, 3, 3], num_prompt_tokens=2)
    sampler = sampler_of([row], 10, HostDevice())
    counts = sampler._settings.counts
    assert counts[0].tolist() == [0, -1, -1, 2, 0, 0, 0, 0, 0, 0]
    logits = torch.zeros(1, 10)
    logits[0, 2] = 5.0
    slots, indices = tensors_of([row])
    for expected in (1, 2):
        assert sampler.draw(logits, slots, indices, "drawn").tokens.tolist() == [2]
        assert counts[0, 2] == expected
    sampler.assign(0, row_of(0, params, history=[1, 2, 3, 3, 2], num_prompt_tokens=2))
    sampler.send()
    assert counts[0].tolist() == [0, -1, 1, 2, 0, 0, 0, 0, 0, 0]
    sampler.assign(0, row_of(0, params, history=[7], num_prompt_tokens=0))
    sampler.send()
    assert counts[0].tolist() == [0, 0, 0, 0, 0, 0, 0, 1, 0, 0]
    assert sampler._settings.counts is counts  # graphs hold it
    sampler.assign(0, row_of(0, params, history=[2] * 40_000, num_prompt_tokens=0))
    sampler.send()
    assert counts[0, 2] == MAX_COUNT
    assert sampler.draw(logits * 1e6, slots, indices, "drawn").tokens.tolist() == [2]
    assert counts[0, 2] == MAX_COUNT


LATE: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (GREEDY, {}),
    ({"temperature": 1.0}, {"banned_ids": (3, 4, 60)}),
    ({"temperature": 1.0, "logit_bias": ((5, 6.0), (9, -100.0))}, {}),
    ({"temperature": 0.0, "logit_bias": ((5, 30.0),), "repetition_penalty": 1.9}, {}),
    ({"temperature": 2.0, "allowed_token_ids": (1, 33, 69)}, {"banned_ids": (33,)}),
    ({"temperature": 0.0, "allowed_token_ids": (8,)}, {"banned_ids": (8,)}),
    ({"temperature": 1.0}, {"forced": 44}),
    ({"temperature": 1.0, "allowed_token_ids": (8,)}, {"banned_ids": (8,), "forced": 2}),
    ({"temperature": 0.9, "bad_words": ((7,), (2, 3), (4, 5, 6))}, {"history": [1, 4, 5]}),
    ({"temperature": 0.9, "frequency_penalty": 1.5, "top_k": 4}, {"banned_ids": (0,)}),
    ({"temperature": 1.0, "top_p": 0.7}, {}),
]


@pytest.mark.parametrize("masked", [False, True])
def test_late_rows_are_those_of_the_host(masked):
    rows = [row_of(rid, params, **fields) for rid, (params, fields) in enumerate(LATE * 4)]
    logits, (slots, indices) = randn(44, 70) * 3, tensors_of(rows)
    masks = None
    if masked:  # two words cover 64 of the 70 tokens
        masks = np.random.default_rng(0).integers(-(2**31), 2**31, (44, 2)).astype(np.int32)
        masks[::2] = -1
        masks[10] = 0
    sampler = sampler_of(rows, 70, HostDevice())
    chosen = sampler.draw_late(logits, rows, slots, indices, masks)
    bits = None if masks is None else torch.from_numpy(masks)
    assert told(chosen) == sample(logits.clone(), rows, bits)
    again = [
        row_of(row.rid, params, **{**fields, "history": [*row.history, token]})
        for row, (params, fields), token in zip(rows, LATE * 4, chosen.tokens.tolist(), strict=True)
    ]
    alive = chosen.alive.nonzero()[:, 0]
    counts = sampler_of(again, 70, HostDevice())._settings.counts
    assert torch.equal(sampler._settings.counts[alive], counts[alive])


def test_each_place_of_a_proposal_counts_the_tokens_before_it():
    params = {"temperature": 0.7, "frequency_penalty": 1.0, "repetition_penalty": 1.3}
    rows = [
        Row(1, [4, 7, 7, 9], 6, [0], SamplingParams(**params), [7, 1, 2, 4], 2, num_proposed=3),
        row_of(0, params),
        Row(2, [4, 5, 5], 6, [0], SamplingParams(temperature=1.0), [1, 4], 1, num_proposed=2),
    ]
    places = [place for row in rows for place in row.places]
    sampler = sampler_of(rows, 20, HostDevice())
    counts = sampler._settings.counts.clone()
    logits = randn(len(places), 20) * 0.3
    chosen = sampler.draw_late(logits, places, *tensors_of(places))
    assert told(chosen) == sample(logits.clone(), places)
    counts[0, chosen.tokens[4]] = counts[0, chosen.tokens[4]].clamp(min=0) + 1
    assert torch.equal(sampler._settings.counts, counts)


def test_kinds():
    sampler = DeviceSampler(1, 10, HostDevice(), "twins")

    def kind(params: dict[str, Any], **fields: Any) -> str:
        return sampler.kind(row_of(0, params, **fields))

    assert kind(GREEDY) == kind({**GREEDY, "top_p": 0.5}) == "greedy"
    assert kind({"temperature": 1.0}) == kind({**GREEDY, "presence_penalty": 1.0}) == "drawn"
    assert kind(GREEDY, banned_ids=(1,)) == kind(GREEDY, forced=0) == "late"
    assert kind({**GREEDY, "logit_bias": ((1, 1.0),)}) == "late"
    assert kind({**GREEDY, "grammar": Grammar("")}) == "late"
    assert kind(GREEDY, num_proposed=1) == "greedy"
    assert kind({**GREEDY, "presence_penalty": 1.0}, num_proposed=1) == "late"


@pytest.mark.parametrize("asking", [[0, 1, 2], [1], [0, 2]])
def test_log_probabilities_are_fetched_beside_the_tokens(asking):
    device = HostDevice()
    nums = {0: 0, 1: 3, 2: 5}
    rows = [
        row_of(at, {"logprobs": nums[at]} if at in asking else {"temperature": 1.0})
        for at in range(3)
    ]
    logits, tokens = randn(4, 600), torch.tensor([5, 17, 599, 0])  # the last row is padding
    asked = DeviceLogprobs.of(rows)
    assert asked is not None
    fetched = device.fetch(asked.begin(logits, tokens, device))
    logits.zero_()
    expected = tell(
        randn(4, 600)[asking].log_softmax(-1),
        tokens[asking].tolist(),
        [nums[at] for at in asking],
    )
    assert asked.finish(fetched.wait()) == dict(zip(asking, expected, strict=True))
    assert DeviceLogprobs.of([row_of(0, GREEDY)]) is None


def test_settings_fit_their_columns():
    row = encoded(SamplingParams(temperature=0.5, top_k=50, min_p=0.25, seed=-1), 1000)
    assert row[Column.TOP_K] == 50
    assert row[Column.MIN_WEIGHT] == 2**42
    assert row[Column.STREAM] == np.array([stream_of(-1)], dtype=np.uint64).view(np.int64)[0]
    assert row.view(np.float64)[Column.TEMPERATURE] == 0.5
    assert encoded(SamplingParams(top_k=1000), 1000)[Column.TOP_K] == 0  # all of them
