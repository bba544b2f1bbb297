"""The likeliest tokens and drawn ones against torch's."""

from __future__ import annotations

import random

import pytest
import torch

from lmserve.engine.sampling import native
from lmserve.engine.sampling.drawing import draw
from lmserve.engine.sampling.sampler import likeliest
from lmserve.native.library import Kernels
from lmserve.sampling import SamplingParams

SIZES = (1, 7, 17, 600, 1040, 5001)


def logits_of(num_rows: int, size: int, spread: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(size)
    return torch.randn(num_rows, size, generator=generator) * spread


@pytest.mark.parametrize("size", SIZES)
def test_the_first_of_the_likeliest(kernels: Kernels, size: int) -> None:
    for num_rows in (1, 5):
        for logits in (logits_of(num_rows, size).round(), logits_of(num_rows, size) - 100):
            assert native.likeliest(logits, kernels) == likeliest(logits, None)


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("size", SIZES)
def test_a_number_that_is_not_finite_is_its_row_s(
    kernels: Kernels, size: int, number: float
) -> None:
    for at in {0, size // 2, size - 1}:
        logits = logits_of(3, size)
        logits[1, at] = number
        tokens, finite = native.likeliest(logits, kernels)
        assert finite == [True, False, True]
        assert tokens[::2] == logits[::2].argmax(-1).tolist()
        assert 0 <= tokens[1] < size


@pytest.mark.parametrize("spread", [0.5, 2.0, 8.0])
@pytest.mark.parametrize("size", SIZES)
def test_what_torch_draws_is_drawn(kernels: Kernels, size: int, spread: float) -> None:
    choose = random.Random(size)
    logits = logits_of(60, size, spread)
    if size > 1:
        logits[:, 0] = -torch.inf  # banned
    params = [
        SamplingParams(
            temperature=choose.choice([0.3, 0.8, 2.0]),
            top_p=choose.choice([1.0, 1.0, 0.95, 0.5, 1e-9]),
            top_k=choose.choice([0, 0, 1, 20, 300]),
            min_p=choose.choice([0.0, 0.0, 0.05, 0.99]),
        )
        for _ in logits
    ]
    uniforms = [choose.random() for _ in logits]
    drawn = native.draw(logits, params, uniforms, kernels)
    assert drawn == draw(logits.clone(), params, uniforms)
    alone = [
        native.draw(logits[at : at + 1], [params[at]], [uniforms[at]], kernels)[0]
        for at in range(60)
    ]
    assert alone == drawn


def test_both_ends_of_the_uniform_numbers(kernels: Kernels) -> None:
    logits = torch.full((4, 100), -torch.inf)
    logits[:, 40:60] = 1.0
    numbers = [0.0, 1 - 2.0**-48, 0.0, 1 - 2.0**-48]
    params = [SamplingParams(temperature=1.0)] * 2 + [SamplingParams(temperature=1.0, top_k=10)] * 2
    assert native.draw(logits, params, numbers, kernels) == [40, 59, 40, 49]


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_of_what_is_not_a_number_some_token_is_drawn(kernels: Kernels, number: float) -> None:
    cuts = ({}, {"top_k": 5}, {"min_p": 0.1}, {"top_p": 0.9}, {"top_k": 5, "top_p": 0.5})
    params = [SamplingParams(temperature=1.0, **cut) for cut in cuts]
    logits = torch.full((len(params), 40), number)
    tokens = native.draw(logits, params, [0.5] * len(params), kernels)
    assert all(0 <= token < 40 for token in tokens)
