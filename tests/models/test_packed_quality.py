"""What integer products cost the embedded default model, in predictions of a text."""

from __future__ import annotations

import os

import pytest
import torch
from tiny import GREEDY
from tokenizers import Tokenizer

from lmserve.engine.loader import load_runner
from lmserve.engine.plan import Row, StepPlan
from lmserve.errors import ModelError
from lmserve.settings import EngineSettings
from lmserve.weights import files

pytestmark = [pytest.mark.network, pytest.mark.timeout(300)]
TEXT = (
    "When the old lighthouse keeper died, nobody in the village wanted his job. The tower stood "
    "on a narrow rock two miles from the harbour, and in winter the sea often kept the boats away "
    "for weeks. Then a young woman named Ruth came down from the hills with one suitcase and a "
    "letter from the council. She had never lived near the water. The fishermen laughed at her "
    "boots and her city coat, but they rowed her out all the same, because the lamp had been dark "
    "for nine nights and two boats had already been lost. The first thing she did was to clean "
    "the glass. It took her three days. Salt had dried on it in thick white lines, and behind the "
    "lamp the brass was green. She read the instructions which the keeper had left in a tin box."
)


def runner_of(**settings):
    try:
        path = files.resolve(None, files.cache_dir(os.environ.get("LMSERVE_CACHE_DIR"))).path
    except ModelError as error:
        pytest.skip(f"the default model cannot be had: {error.message}")
    chosen = EngineSettings(model=str(path), device="cpu", session_len=256, **settings)
    return load_runner(chosen, lambda stage: None)


@pytest.mark.parametrize(("chunk", "forms"), [(1, "int4 and an int8 head"), (8, "int8")])
def test_predictions_are_near_the_exact_ones(chunk, forms):
    runner, exact = runner_of(), runner_of(dtype="float32")
    tokens = Tokenizer.from_file(str(exact.assets.tokenizer_file)).encode(TEXT).ids
    expected, got = (predictions(each, tokens, chunk) for each in (exact, runner))
    divergence = (expected.exp() * (expected - got)).sum(-1)
    assert divergence.mean() < 0.02, forms
    targets = torch.tensor(tokens[chunk::chunk])[:, None]
    loss = [-each[: len(targets)].gather(1, targets).mean() for each in (expected, got)]
    assert abs(loss[1] - loss[0]) < 0.05, forms


def predictions(runner, tokens: list[int], chunk: int) -> torch.Tensor:
    """Log probabilities after each chunk of a text."""
    blocks = list(range(-(-len(tokens) // runner.block_size)))
    rows = [
        Row(0, tokens[start : start + chunk], start, blocks, GREEDY)
        for start in range(0, len(tokens), chunk)
    ]
    return torch.cat([runner.logits(StepPlan([row])) for row in rows]).log_softmax(-1)
