"""Steps that are launched before the one before them is read."""

from __future__ import annotations

import pytest

from lmserve.messages import LOWEST
from lmserve.sampling import SamplingParams
from lmserve.settings import EngineSettings
from tests.engine.paged import Bench, LaggingRunner, oracle

PROMPT = [1, 2, 3, 4, 5, 6]  # ends within a block


def test_a_block_is_not_found_before_it_is_copied() -> None:
    """One that begins like another takes over its last block; the other goes on in a copy, ends
    before that is made, and the step that was to make it fails."""
    bench = Bench(LaggingRunner(20, 4), EngineSettings(max_batch_size=4))
    first = bench.submit(0, PROMPT, max_tokens=20, ignore_eos=True)
    bench.submit(1, [*PROMPT, 40, 41], max_tokens=5, ignore_eos=True)
    bench.submit(2, [30, 31, 32], max_tokens=20, ignore_eos=True)
    while not (plan := bench.step()).copies:
        assert len(bench.runner.plans) < 9
    bench.runner.raising.add(2)
    bench.abort(0)
    bench.drain()
    assert len(first.ids) == 2 and len(plan.copies) == 2
    prompt = [*PROMPT, *first.ids, 9]
    answer = bench.submit(3, prompt, max_tokens=3)
    bench.drain()
    assert answer.ids == oracle(prompt, SamplingParams(max_tokens=3)).ids


@pytest.mark.parametrize("priority", [0, LOWEST])
def test_who_needs_the_whole_pool_waits_for_a_step_under_way(priority: int) -> None:
    """It holds the source of a copy, though nobody runs any more."""
    bench = Bench(LaggingRunner(6, 4), EngineSettings(max_batch_size=4))
    bench.submit(0, PROMPT, max_tokens=9, ignore_eos=True)
    bench.submit(1, [*PROMPT, 40], max_tokens=9, ignore_eos=True)
    while not bench.step().copies:
        assert len(bench.runner.plans) < 9
    bench.abort(0, 1)
    prompt = [*range(10, 32)]
    answer = bench.submit(2, prompt, priority, max_tokens=2)
    bench.drain()
    assert answer.ids == oracle(prompt, SamplingParams(max_tokens=2)).ids
