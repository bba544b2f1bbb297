"""The vectorised sampler against slow, obvious references."""

from __future__ import annotations

import math
import random

import pytest
import torch
import transformers

from lmserve.engine.plan import Row
from lmserve.engine.sampling.drawing import CANDIDATES
from lmserve.engine.sampling.sampler import sample, uniform
from lmserve.sampling import SamplingParams


def row_of(params: SamplingParams, history=(), num_prompt_tokens=0, index=8, banned=()) -> Row:
    return Row(0, [0], index - 1, [0], params, history, num_prompt_tokens, banned)


def slow_distribution(logits: torch.Tensor, params: SamplingParams) -> list[float]:
    """One row, one list, one step after another."""
    values = [value / params.temperature for value in logits.tolist()]
    top = max(values)
    weights = {token: math.exp(value - top) for token, value in enumerate(values)}
    weights = {t: w for t, w in weights.items() if w >= params.min_p}
    order = sorted(weights, key=lambda token: -weights[token])
    if params.top_k > 0:
        order = order[: params.top_k]
    total, mass, kept = sum(weights[token] for token in order), 0.0, []
    for token in order:
        if mass >= params.top_p * total and kept:
            break
        kept.append(token)
        mass += weights[token]
    return [weights[token] / mass if token in kept else 0.0 for token in range(len(values))]


CUTS = [
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.5),
    SamplingParams(temperature=2.0, top_k=5),
    SamplingParams(temperature=1.0, top_p=0.7),
    SamplingParams(temperature=1.0, min_p=0.2),
    SamplingParams(temperature=1.5, top_k=12, top_p=0.8, min_p=0.05),
    SamplingParams(temperature=1.0, top_k=1),
    SamplingParams(temperature=1.0, top_p=1e-9),
    SamplingParams(temperature=1e-30, top_p=0.9),
]


@pytest.mark.parametrize("params", CUTS)
def test_frequencies_follow_the_distribution(params):
    logits = torch.randn(24, generator=torch.Generator().manual_seed(3)) * 2
    expected = slow_distribution(logits, params) if params.temperature > 1e-9 else None
    count = 4000
    rows = [
        row_of(SamplingParams(**{**_fields(params), "seed": seed}), index=seed % 7 + 1)
        for seed in range(count)
    ]
    drawn = torch.tensor(sample(logits.repeat(count, 1), rows)).bincount(minlength=24)
    if expected is None:
        assert drawn[logits.argmax()] == count
        return
    kept = [token for token, share in enumerate(expected) if share > 0]
    assert sum(drawn[token].item() for token in kept) == count
    chi_square = sum(
        (drawn[t].item() - count * expected[t]) ** 2 / (count * expected[t]) for t in kept
    )
    freedom = len(kept) - 1
    assert chi_square <= freedom + 4 * math.sqrt(2 * freedom) + 4


def _fields(params: SamplingParams) -> dict[str, float]:
    return {name: getattr(params, name) for name in params.__struct_fields__}


@pytest.mark.parametrize("spread", [0.01, 3.0])
def test_a_wide_vocabulary_keeps_the_same_tokens_as_a_full_sort(spread):
    """Some rows need more than the candidates, some do not; min_p, top_k and top_p alike."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3 * CANDIDATES[-1], generator=generator) * spread
    for params in (
        SamplingParams(temperature=1.0, top_p=0.9),
        SamplingParams(temperature=1.0, min_p=0.5),
        SamplingParams(temperature=1.0, min_p=0.98, top_p=0.95),
        SamplingParams(temperature=1.0, top_k=2 * CANDIDATES[-1], top_p=0.99),
    ):
        expected = slow_distribution(logits, params)
        order = sorted(range(len(expected)), key=lambda token: -logits[token].item())
        for seed in range(20):
            u = uniform(seed, 8)
            seeded = SamplingParams(**{**_fields(params), "seed": seed})
            (token,) = sample(logits[None].clone(), [row_of(seeded)])
            mass = sum(expected[each] for each in order[: order.index(token)])
            assert mass - 1e-4 <= u <= mass + expected[token] + 1e-4


def test_a_seeded_row_does_not_depend_on_its_batch():
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(6, 3000, generator=generator)
    params = [
        SamplingParams(temperature=0.9, seed=1),
        SamplingParams(temperature=1.3, top_p=0.99, seed=2),
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=0.7, top_k=40, top_p=0.9, seed=3),
        SamplingParams(temperature=1.0, min_p=0.01, seed=4),
        SamplingParams(temperature=1.0, frequency_penalty=1.0, seed=5),
    ]
    rows = [row_of(each, history=[1, 2, 2], num_prompt_tokens=1) for each in params]
    together = sample(logits.clone(), rows)
    for order in ([5, 4, 3, 2, 1, 0], [3, 1], [2], [0, 5]):
        again = sample(logits[order].clone(), [rows[i] for i in order])
        assert again == [together[i] for i in order]


def test_greedy_is_the_argmax():
    logits = torch.randn(5, 100, generator=torch.Generator().manual_seed(4))
    rows = [row_of(SamplingParams(temperature=0.0))] * 5
    assert sample(logits.clone(), rows) == logits.argmax(-1).tolist()


def test_banned_tokens_are_never_chosen():
    logits = torch.zeros(2, 4)
    logits[:, 1] = 50.0
    rows = [
        row_of(SamplingParams(temperature=0.0), banned=(1,)),
        row_of(SamplingParams(temperature=1.0, seed=9), banned=(0, 1, 3)),
    ]
    chosen = sample(logits, rows)
    assert chosen[0] != 1
    assert chosen[1] == 2


def test_repetition_penalty_is_that_of_transformers():
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(5))
    history = [3, 7, 7, 9, 49]
    processor = transformers.RepetitionPenaltyLogitsProcessor(1.7)
    expected = processor(torch.tensor([history]), logits.clone())
    params = SamplingParams(temperature=0.0, repetition_penalty=1.7)
    changed = logits.clone()
    sample(changed, [row_of(params, history, num_prompt_tokens=2)])
    torch.testing.assert_close(changed, expected)


def test_presence_and_frequency_count_the_output_only():
    logits = torch.zeros(2, 6)
    params = SamplingParams(temperature=0.0, presence_penalty=0.5, frequency_penalty=0.25)
    plain = SamplingParams(temperature=0.0)
    sample(logits, [row_of(plain), row_of(params, [0, 1, 1, 2, 2, 2], num_prompt_tokens=2)])
    assert logits.tolist() == [[0.0] * 6, [0.0, -0.75, -1.25, 0.0, 0.0, 0.0]]


def test_uniform_numbers_are_uniform_and_their_own():
    source = random.Random(0)
    drawn = [uniform(source.getrandbits(63), index) for index in range(500)]
    drawn += [uniform(7, index) for index in range(500)]
    assert all(0.0 <= u < 1.0 for u in drawn)
    assert len(set(drawn)) == 1000
    tenths = torch.tensor(drawn).mul(10).long().bincount(minlength=10)
    assert tenths.min() > 60 and tenths.max() < 140
    assert uniform(7, 3) == uniform(7, 3) != uniform(7, 4)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1e-50, seed=1),
        SamplingParams(temperature=1e-42, top_p=0.9, seed=1),
        SamplingParams(temperature=1.0, repetition_penalty=1e-40, seed=1),
        SamplingParams(temperature=1.0, repetition_penalty=1e-40, top_k=5, seed=1),
        SamplingParams(temperature=0.0, repetition_penalty=1e-40),
    ],
)
def test_extreme_values_choose_a_token_of_the_vocabulary(params: SamplingParams) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 50)
    logits[0, 3] = 9.0
    plain = SamplingParams(temperature=1.0, seed=3)
    rows = [
        Row(0, [1], 3, [0], params, [1, 2, 3, 4], 2),
        Row(1, [1], 3, [0], plain, [1, 2, 3, 4], 2),
    ]
    alone = sample(logits[1:].clone(), rows[1:])
    chosen = sample(logits.clone(), rows)
    assert chosen[0] == 3  # far ahead before and after the penalty
    assert chosen[1:] == alone
