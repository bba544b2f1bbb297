"""The embedded default model, as a script would have it."""

from __future__ import annotations

import pytest

from lmserve import LLM, SamplingParams
from lmserve.errors import ModelError

pytestmark = [pytest.mark.network, pytest.mark.timeout(300)]


def test_a_script_asks_the_default_model() -> None:
    try:
        llm = LLM(session_len=128, num_blocks=16)
    except ModelError as error:
        pytest.skip(f"the default model cannot be had: {error.message}")
    with llm:
        (answer,) = llm.generate(
            "The capital of France is", SamplingParams(temperature=0, max_tokens=4, stop="\n")
        )
    assert answer.text.startswith(" Paris")
