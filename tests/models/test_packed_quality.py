"""What each path costs the embedded default model, in predictions of the text that
`bench/perplexity.py` measures at length."""

from __future__ import annotations

import os
from functools import cache, lru_cache

import pytest
import torch

from bench.perplexity import MIXED, TEXT, feed, read, runner_of
from lmserve.engine.runner import Runner
from lmserve.errors import ModelError
from lmserve.native.select import runnable
from lmserve.weights import files

pytestmark = [pytest.mark.network, pytest.mark.timeout(300)]
NUM_TOKENS = 192
NATIVE = [name for name, reason in runnable().items() if reason is None]
PATHS = {
    "torch int4": ("torch", (4,)),  # tokens a step
    "torch int8": ("torch", (NUM_TOKENS,)),
    **{name: (name, MIXED) for name in NATIVE},
}


@lru_cache(maxsize=1)
def runner(kernels: str, dtype: str) -> Runner:
    return runner_of(
        model_and_cache()[0], NUM_TOKENS, {"kernels": kernels, "dtype": dtype}, "cpu", 1
    )


@cache
def losses(kernels: str, sizes: tuple[int, ...], dtype: str = "auto") -> torch.Tensor:
    return feed(runner(kernels, dtype), [read(TEXT, *model_and_cache(), NUM_TOKENS)[0]], sizes)


def model_and_cache():
    directory = files.cache_dir(os.environ.get("LMSERVE_CACHE_DIR"))
    try:
        return files.resolve(None, directory).path, directory
    except ModelError as error:
        pytest.skip(f"the default model cannot be had: {error.message}")


@pytest.mark.parametrize("path", PATHS)
def test_predictions_are_near_the_exact_ones(path):
    exact = losses("torch", (NUM_TOKENS,), "float32")  # first: one runner is kept
    change = losses(*PATHS[path]) - exact
    assert abs(change.mean().exp() - 1) < 0.02  # of the perplexity
    assert change.abs().mean() < 0.1


@pytest.mark.parametrize("kernels", NATIVE)
def test_chunks_of_any_sizes_predict_the_same_to_the_bit(kernels):
    assert losses(kernels, MIXED).equal(losses(kernels, (NUM_TOKENS,)))
