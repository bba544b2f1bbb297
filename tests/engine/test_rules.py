"""Biases, allowed tokens, bad words and masks: what may come, row by row."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from lmserve.engine.plan import Row
from lmserve.engine.sampling.logprobs import GROUP, tell
from lmserve.engine.sampling.rules import Rules
from lmserve.engine.sampling.sampler import sample
from lmserve.sampling import SamplingParams

GREEDY = {"temperature": 0.0}


def row_of(history: Sequence[int] = (1,), banned: Sequence[int] = (), **sampling: Any) -> Row:
    params = SamplingParams(**sampling)
    return Row(0, [0], 7, [0], params, history, 1, banned, rules=Rules.of(params))


def ordered(*best: int, size: int = 70, count: int = 1) -> torch.Tensor:
    """Logits whose likeliest tokens are these, in order."""
    logits = torch.zeros(size)
    for rank, token in enumerate(best):
        logits[token] = 50.0 - rank
    return logits.repeat(count, 1)


def test_without_any_there_are_no_rules() -> None:
    assert Rules.of(SamplingParams(stop_token_ids=(3,), presence_penalty=1.0)) is None


def test_a_bias_is_added_to_a_rows_own_logits() -> None:
    rows = [row_of(**GREEDY, logit_bias=((7, 60.0), (3, -100.0))), row_of(**GREEDY)]
    assert sample(ordered(3, 5, count=2), rows) == [7, 3]
    assert sample(ordered(3, 5), [row_of(**GREEDY, logit_bias=((3, -1.5),))]) == [5]
    assert sample(ordered(3, 5), [row_of(**GREEDY, logit_bias=((3, 1e30),))]) == [3]


def test_a_bias_comes_before_penalties() -> None:
    """As in vLLM: the repetition penalty divides what the bias made."""
    row = row_of([5], **GREEDY, logit_bias=((5, 10.0),), repetition_penalty=2.0)
    logits = torch.tensor([[0.0, 7.5, 0.0, 0.0, 0.0, 6.0]])
    assert sample(logits, [row]) == [5]


@pytest.mark.parametrize("temperature", [0.0, 3.0])
def test_of_some_allowed_tokens_one_comes(temperature: float) -> None:
    allowed = (0, 31, 32, 69)
    rows = [
        row_of(temperature=temperature, seed=seed, allowed_token_ids=allowed) for seed in range(40)
    ]
    chosen = set(sample(ordered(3, 5, count=41), [*rows, row_of(**GREEDY)])[:-1])
    assert chosen <= set(allowed)
    assert len(chosen) > 1 or temperature == 0
    assert sample(ordered(3, 5, 2), [row_of(**GREEDY, allowed_token_ids=(2, 5))]) == [5]


@pytest.mark.parametrize(
    ("history", "word", "banned"),
    [
        ([1], (3,), True),
        ([1, 9], (9, 3), True),
        ([9, 1], (9, 3), False),
        ([8, 9], (8, 9, 3), True),
        ([7, 9], (8, 9, 3), False),
        ([9], (8, 9, 3), False),
        ([3], (3, 3), True),
        ([], (9, 3), False),
    ],
)
def test_a_bad_word_is_never_completed(history: list[int], word: Any, banned: bool) -> None:
    row = row_of(history, **GREEDY, bad_words=(word, (60, 61)))
    assert sample(ordered(3, 5), [row]) == [5 if banned else 3]


def test_bad_words_as_a_slow_search_has_them() -> None:
    source = random.Random(5)
    for _ in range(300):
        words = tuple(
            tuple(source.randrange(4) for _ in range(source.randint(1, 4)))
            for _ in range(source.randint(1, 4))
        )
        history = [source.randrange(4) for _ in range(source.randint(0, 6))]
        expected = {
            token
            for token, word in itertools.product(range(4), words)
            if tuple([*history, token][-len(word) :]) == word
        }
        rules = Rules.of(SamplingParams(bad_words=words))
        assert rules is not None
        assert set(rules.banned_after(history)) == expected


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("cut", [{}, {"top_k": 2, "top_p": 0.5}])
def test_a_row_with_no_token_left_has_none_and_others_have_theirs(
    temperature: float, cut: dict[str, Any]
) -> None:
    dead = [
        row_of(temperature=temperature, **cut, allowed_token_ids=(4,), bad_words=((4,),)),
        row_of(banned=[6], temperature=temperature, **cut, allowed_token_ids=(6,)),
    ]
    rows = [row_of(**GREEDY), *dead, row_of(temperature=1.0, top_k=1)]
    assert sample(ordered(3, 5, count=4), rows) == [3, None, None, 3]


def test_a_mask_leaves_a_row_without_a_grammar_alone() -> None:
    size = 70
    bits = np.full((3, 96), 0, dtype=np.uint8)
    bits[0] = 1
    bits[1, [2, 64]] = 1
    masks = torch.from_numpy(np.packbits(bits, axis=1, bitorder="little").view(np.int32))
    rows = [row_of(**GREEDY) for _ in range(3)]
    assert sample(ordered(69, 64, 2, size=size, count=3), rows, masks) == [69, 64, None]


@pytest.mark.parametrize("size", [5, GROUP, 40 * GROUP, 1000 * GROUP + 17])
def test_the_likeliest_are_those_of_a_sort(size: int) -> None:
    logprobs = torch.randn(6, size, generator=torch.Generator().manual_seed(2)).log_softmax(-1)
    nums = [0, 1, 3, 5, 20, 7]
    told = tell(logprobs, [0, 1, 2, 3, 4, size - 1], nums)
    order = logprobs.argsort(-1, descending=True)
    for row, (each, num) in enumerate(zip(told, nums, strict=True)):
        assert each.top_ids == order[row, :num].tolist()
        assert each.top_logprobs == logprobs[row, order[row, :num]].tolist()
        assert each.logprob == logprobs[row, each.token_id]
