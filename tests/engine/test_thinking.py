from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from lmserve.engine.plan import Row
from lmserve.engine.sampling.sampler import sample
from lmserve.engine.thinking import Reasoning
from lmserve.sampling import Grammar, SamplingParams, Thinking
from lmserve.settings import EngineSettings
from tests.engine.paged import Bench, PagedRunner, forced_by, oracle

END = (7, 8)
MARK = st.lists(st.integers(0, 1), min_size=1, max_size=3).map(tuple)


def answer(thinking: Thinking, prompt: tuple[int, ...] = (1, 2, 3), **how: int) -> list[int]:
    bench = Bench()
    answer = bench.submit(1, list(prompt), thinking=thinking, **how)
    bench.drain()
    return answer.ids


def test_reasoning_that_takes_too_long_is_ended_and_the_answer_goes_on() -> None:
    ids = answer(Thinking(5, END), max_tokens=12)
    free = answer(Thinking(50, END), max_tokens=12)
    assert ids[:5] == free[:5] and not {7, 8} & set(free[:5])
    assert ids[5:7] == [7, 8]
    assert len(ids) == 12
    assert ids == oracle([1, 2, 3], SamplingParams(max_tokens=12, thinking=Thinking(5, END))).ids


def test_a_budget_of_none_ends_it_at_once_and_max_tokens_may_cut_it() -> None:
    assert answer(Thinking(0, END), max_tokens=4)[:2] == [7, 8]
    assert answer(Thinking(0, END), max_tokens=1) == [7]
    assert answer(Thinking(3, END), max_tokens=4)[3:] == [7]


def forced(thinking: Thinking, output: list[int], prompt: int = 0) -> int | None:
    reasoning = Reasoning.of(SamplingParams(thinking=thinking), prompt)
    assert reasoning is not None
    return reasoning.forced([9] * prompt + output)


def test_nothing_is_forced_before_the_reasoning_begins_nor_after_its_end() -> None:
    thinking = Thinking(2, END, start_ids=(4, 5))
    assert forced(thinking, [1, 4, 1, 4, 4]) is None
    assert forced(thinking, [1, 4, 4, 5, 1]) is None
    assert forced(thinking, [1, 4, 4, 5, 1, 1]) == 7
    assert forced(thinking, [4, 5, 7, 8, 1, 1, 1]) is None
    assert forced(thinking, [4, 5, 7, 8, 4, 5, 1, 1, 1]) is None  # the answer's own


def test_the_prompt_is_not_looked_at() -> None:
    assert forced(Thinking(1, (9,)), [1], prompt=3) == 9
    assert forced(Thinking(1, END, start_ids=(9,)), [1, 1], prompt=3) is None


def test_an_end_the_model_began_itself_is_completed() -> None:
    assert forced(Thinking(2, END), [1, 7]) == 8
    assert forced(Thinking(1, (7, 7, 8)), [7, 7, 7]) == 8


@pytest.mark.parametrize(("after", "ends"), [((), False), (END, True)])
def test_a_grammar_from_the_first_token_on_leaves_no_reasoning(
    after: tuple[int, ...], ends: bool
) -> None:
    sampling = SamplingParams(thinking=Thinking(1, END), grammar=Grammar("", after))
    assert (Reasoning.of(sampling, 0) is not None) == ends


@given(
    output=st.lists(st.integers(0, 1), max_size=25),
    end=MARK,
    start=st.one_of(st.just(()), MARK),
    max_tokens=st.integers(0, 5),
)
@example(output=[0, 1, 0, 1], end=(0, 1, 1), start=(), max_tokens=1)
def test_following_token_by_token_sees_what_looking_at_all_again_sees(
    output: list[int], end: tuple[int, ...], start: tuple[int, ...], max_tokens: int
) -> None:
    thinking = Thinking(max_tokens, end, start)
    reasoning = Reasoning.of(SamplingParams(thinking=thinking), 2)
    assert reasoning is not None
    tokens = [3, 3]
    for at, natural in enumerate(output):
        token = reasoning.forced(tokens)
        assert token == forced_by(thinking, tokens[2:])
        assert forced(thinking, tokens[2:], prompt=2) == token  # seen all at once
        tokens.append(natural if token is None or at % 3 == 0 else token)


def test_preempted_and_cut_into_chunks_it_ends_where_it_would_alone() -> None:
    settings = EngineSettings(max_batch_size=6, max_step_tokens=7)
    bench = Bench(PagedRunner(12, 2), settings)
    prompts = [[5, 6, 7, 8, *range(rid)] for rid in range(8)]
    how = {"max_tokens": 8, "thinking": Thinking(3, END)}
    answers = [bench.submit(rid, prompt, **how) for rid, prompt in enumerate(prompts)]
    bench.drain()
    assert bench.core.scheduler.num_preemptions > 0
    for prompt, each in zip(prompts, answers, strict=True):
        assert each.ids == oracle(prompt, SamplingParams(**how)).ids


def test_an_update_may_set_a_budget_that_is_spent_already() -> None:
    bench = Bench()
    answer = bench.submit(1, [1, 2, 3], max_tokens=12)
    for _ in range(6):
        bench.step()
    bench.update(1, max_tokens=12, thinking=Thinking(2, END))
    bench.drain()
    assert answer.ids[6:8] == [7, 8]


def test_the_sampler_takes_a_forced_token_whatever_the_logits() -> None:
    logits = torch.zeros(3, 10)
    logits[:, 4] = 50.0
    sampling = [SamplingParams(temperature=0.0), SamplingParams(top_k=1), SamplingParams()]
    rows = [
        Row(rid, [1], 0, [0], each, [1], 1, banned_ids=(4,) if rid == 0 else (), forced=token)
        for rid, (each, token) in enumerate(zip(sampling, [4, 0, None], strict=True))
    ]
    assert sample(logits, rows) == [4, 0, 4]
