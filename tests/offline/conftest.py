"""A tiny model in this process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lmserve import LLM
from tests.e2e.conftest import TinyModel, make_model

SMALL = {"dtype": "float32", "device": "cpu", "threads": 1, "block_size": 4, "num_blocks": 128}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return make_model(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="session")
def shared(tiny: TinyModel) -> Iterator[LLM]:
    with LLM(tiny.path, **SMALL) as llm:
        yield llm


@pytest.fixture
def llm(shared: LLM) -> Iterator[LLM]:
    """Left idle by every test, with all its blocks given back."""
    yield shared
    core = shared._engine._core
    assert core is not None and not core.has_work()
    core.cache.check()
    assert core.cache.counts().held == 0
