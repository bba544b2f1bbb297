"""What is proposed, what of it is kept, and that it changes nothing but the number of steps."""

from __future__ import annotations

import random
from itertools import cycle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmserve.engine.grammars import Constraint
from lmserve.engine.plan import Row
from lmserve.engine.sampling.rules import Rules
from lmserve.engine.sampling.sampler import sample
from lmserve.engine.sequence import Sequence
from lmserve.engine.speculation.costs import GUESSED_SHARE, StepCosts
from lmserve.engine.speculation.lookup import SIZES, PromptLookup, Proposer
from lmserve.engine.speculation.speculation import Guesses, Speculation, num_worth
from lmserve.messages import LOWEST
from lmserve.sampling import Grammar, SamplingParams, Thinking
from lmserve.settings import EngineSettings
from tests.engine.paged import Bench, Free, PagedRunner, Prophet, oracle
from tests.engine.test_scheduler import commit, run, scheduler, sequence

RIGHT, WRONG = (True,), (False,)


def speculating(bench: Bench, right: tuple[bool, ...], most: int = 4) -> Speculation:
    found = Speculation(most, lambda: Prophet(cycle(right), bench.runner.vocab_size), Free())
    bench.core.scheduler.speculation = found
    return found


# --- what is proposed ---------------------------------------------------------------------


def test_what_followed_the_same_ending_is_proposed() -> None:
    lookup = PromptLookup()
    tokens = [1, 2, 3, 4, 5, 6, 2, 3, 4]
    assert lookup.propose(tokens, 3) == [5, 6, 2]
    assert lookup.propose([*tokens, 9], 3) == []
    assert lookup.propose([*tokens, 9, 2, 3, 4], 2) == [9, 2]  # the last place counts


def test_the_longest_ending_counts() -> None:
    tokens = [1, 2, 3, 4, 5, 7, 9, 3, 4, 5, 8, 1, 2, 3, 4, 5]
    assert PromptLookup().propose(tokens, 1) == [7]


def test_what_repeats_itself_is_proposed_as_often_as_asked() -> None:
    assert PromptLookup().propose([5, 6, 6, 6, 6], 4) == [6, 6, 6, 6]
    assert PromptLookup().propose([1, 2, 3, 1, 2, 3], 7) == [1, 2, 3, 1, 2, 3, 1]


def test_nothing_is_proposed_where_nothing_is_known() -> None:
    for tokens in ([], [1], [1, 1, 1], [1, 2, 3, 4], [1, 2, 3, 4, 5, 2, 3]):
        assert PromptLookup().propose(tokens, 4) == []


@given(st.lists(st.integers(0, 2), max_size=40), st.integers(1, 6), st.integers(1, 5))
def test_token_by_token_it_proposes_what_a_scan_of_all_finds(
    tokens: list[int], most: int, stride: int
) -> None:
    lookup = PromptLookup()
    for num in range(stride, len(tokens) + 1, stride):
        assert lookup.propose(tokens[:num], most) == scan(tokens[:num], most)


def scan(tokens: list[int], most: int) -> list[int]:
    for size in SIZES:
        for end in range(len(tokens) - 1, size - 1, -1):
            if tokens[end - size : end] == tokens[-size:]:
                text = list(tokens)
                for at in range(most):
                    text.append(text[end + at])
                return text[len(tokens) :]
    return []


# --- whether it pays ----------------------------------------------------------------------


def test_tokens_are_proposed_while_their_chance_is_worth_their_cost() -> None:
    assert [num_worth(chance, 0.3, 8) for chance in (0.1, 0.3, 0.5, 0.8, 0.99)] == [0, 0, 1, 5, 8]
    assert [num_worth(0.8, share, 8) for share in (0.0, 0.1, 0.7, 0.9, 1.0)] == [8, 8, 1, 0, 0]
    assert num_worth(1.0, 0.9, 8) == 8


def test_guesses_that_come_true_make_longer_ones_and_others_none() -> None:
    share = 0.3
    good, bad = Guesses(Prophet(cycle(RIGHT))), Guesses(Prophet(cycle(WRONG)))
    tokens = [1, 2, 3]
    nums = {id(good): [], id(bad): []}
    for _ in range(12):
        truth = Prophet(cycle(RIGHT)).propose(tokens, 9)
        for guesses in (good, bad):
            nums[id(guesses)].append(len(guesses.make(tokens, 8, share)))
            guesses.compare(truth)
        tokens = [*tokens, truth[0]]
    assert nums[id(good)][0] == nums[id(bad)][0] == 1
    assert nums[id(good)][-1] == 8
    assert nums[id(bad)][-1] == 0


def test_guesses_are_made_again_when_they_would_have_come_true() -> None:
    guesses = Guesses(Prophet([False] * 20 + [True] * 100))
    tokens, nums = [1], []
    for _ in range(40):
        nums.append(len(guesses.make(tokens, 4, 0.4)))
        truth = Prophet(cycle(RIGHT)).propose(tokens, 1)
        guesses.compare(truth)
        tokens += truth
    assert 0 in nums[5:25]
    assert nums[-1] > 0


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_costs_follow_what_steps_take(noise: float) -> None:
    source = random.Random(1)

    def run(costs: StepCosts, fixed: float, num_times: int) -> None:
        for num_rows, num_tokens in [(1, 1), (1, 5), (1, 1), (4, 4), (1, 3), (4, 9)] * num_times:
            seconds = (fixed + num_tokens) * source.uniform(1 - noise, 1 + noise)
            costs.add(num_rows, num_tokens, seconds)

    costs = StepCosts()
    assert costs.share(1) == costs.share(8) == GUESSED_SHARE
    run(costs, 9.0, 60)
    assert costs.share(1) == pytest.approx(0.1, abs=0.05)
    assert costs.share(4) == pytest.approx(4 / 13, abs=0.1)
    assert costs.share(8) == pytest.approx(8 / 17, abs=0.1)  # never seen
    run(costs, 1.0, 500)
    assert costs.share(1) == pytest.approx(0.5, abs=0.12)


def test_costs_of_few_rows_say_little_of_many() -> None:
    """One row waits for the memory, eight for the processor."""
    costs = StepCosts()
    for more in [0, 4, 0, 2, 8, 0] * 50:
        costs.add(1, 1 + more, 10.0)
        costs.add(8, 8 + more, 10.0 + 1.25 * more)
    assert costs.share(1) < 0.1
    assert costs.share(8) > 0.9


def test_costs_never_leave_their_range() -> None:
    costs = StepCosts()
    costs.add(4, 4, 1.0)
    costs.add(2, 2, 50.0)  # the machine was busy
    costs.add(9, 9, 0.0)
    costs.add(9, 20, 0.0)
    for num_rows in (1, 4, 9, 64):
        assert 0.0 <= costs.share(num_rows) <= 1.0


# --- what is kept -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("drawn", "kept"),
    [([7, 8, 9], [7, 8, 9]), ([7, 8, 5], [7, 8, 5]), ([7, 5, 9], [7, 5]), ([5, 8, 9], [5]),
     ([7, None, 9], [7]), ([None, 8, 9], [])],
)  # fmt: skip
def test_tokens_are_kept_up_to_the_first_that_was_not_proposed(
    drawn: list[int | None], kept: list[int]
) -> None:
    row = Row(1, [3, 7, 8], 4, [0], SamplingParams(), num_proposed=2)
    assert row.kept(drawn) == kept


def test_each_place_is_drawn_as_a_row_of_its_own_would_be() -> None:
    """With its own uniform number, and with the history that it would have."""
    ways = (
        SamplingParams(temperature=0.0),
        SamplingParams(seed=5),
        SamplingParams(seed=6, temperature=0.9, top_p=0.8, top_k=7, min_p=0.01),
        SamplingParams(seed=7, repetition_penalty=1.4, frequency_penalty=0.5),
        SamplingParams(seed=8, bad_words=((3, 1), (2,)), logit_bias=((4, 2.0),)),
    )
    proposed = [1, 2, 1, 3]
    for sampling in ways:
        history = [9, 8, 3]
        rules = Rules.of(sampling)
        row = Row(1, [3, *proposed], 2, [0], sampling, history, 1, rules=rules, num_proposed=4)
        alone = [
            Row(1, [text[-1]], len(text) - 1, [0], sampling, text, 1, rules=rules)
            for num in range(5)
            for text in [history + proposed[:num]]
        ]
        logits = torch.randn(5, 12, generator=torch.Generator().manual_seed(3))
        expected = [sample(logits[at : at + 1].clone(), [alone[at]])[0] for at in range(5)]
        assert sample(logits.clone(), row.places) == expected


# --- in the engine ------------------------------------------------------------------------


def test_what_comes_as_proposed_takes_fewer_steps() -> None:
    bench = Bench()
    speculation = speculating(bench, RIGHT)
    answer = bench.submit(1, [1, 2, 3], max_tokens=21)
    bench.drain()
    assert answer.ids == oracle([1, 2, 3], SamplingParams(max_tokens=21)).ids
    assert [len(plan.rows[0].token_ids) for plan in bench.runner.plans] == [3, 5, 5, 5, 5]
    stats = bench.core.stats.snapshot()
    assert (stats.spec_proposals, stats.spec_proposed_tokens, stats.spec_accepted_tokens) == (
        (4, 16, 16)
    )
    assert speculation.num_accepted == 16


def test_what_does_not_come_takes_as_many_steps_as_without() -> None:
    bench = Bench()
    speculating(bench, WRONG)
    answer = bench.submit(1, [1, 2, 3], max_tokens=10)
    bench.drain()
    assert answer.ids == oracle([1, 2, 3], SamplingParams(max_tokens=10)).ids
    assert len(bench.runner.plans) == 10
    assert bench.core.stats.snapshot().spec_accepted_tokens == 0


def test_an_answer_ends_within_what_was_accepted() -> None:
    sampling = {"max_tokens": 30}
    stop = oracle([1, 2, 3], SamplingParams(**sampling)).ids[7]
    asked = sampling | {"stop_token_ids": (stop,)}
    expected = oracle([1, 2, 3], SamplingParams(**asked))
    bench = Bench()
    speculating(bench, RIGHT)
    answer = bench.submit(1, [1, 2, 3], **asked, logprobs=0)
    bench.drain()
    assert (answer.ids, answer.finish, answer.stop_token_id) == (expected.ids, "stop", stop)
    assert [each.token_id for each in answer.logprobs] == answer.ids
    # as without: the end itself has no KV in the tree
    again = bench.submit(2, [1, 2, 3, *expected.ids, 1, 1], max_tokens=1)
    bench.drain()
    assert again.num_cached_tokens == 3 + len(expected.ids) - 1


def test_no_more_is_proposed_than_the_answer_may_have() -> None:
    bench = Bench()
    speculating(bench, RIGHT, most=8)
    bench.submit(1, [1, 2, 3], max_tokens=4)
    bench.drain()
    assert [row.num_proposed for plan in bench.runner.plans for row in plan.rows] == [0, 2]


def test_what_is_banned_at_first_is_not_banned_later() -> None:
    """End tokens are banned while below min_tokens: a row is either."""
    ends = tuple(range(10))
    bench = Bench(PagedRunner(vocab_size=50, eos_ids=ends))
    speculating(bench, RIGHT)
    for rid in range(6):
        sampling = {"max_tokens": 20, "min_tokens": rid + 1}
        answer = bench.submit(rid, [rid, 2, 3], **sampling)
        bench.drain()
        assert answer.ids == oracle([rid, 2, 3], SamplingParams(**sampling), eos_ids=ends).ids


def test_proposals_take_no_part_of_the_step_from_others() -> None:
    bench = Bench(settings=EngineSettings(max_step_tokens=8))
    speculating(bench, RIGHT)
    bench.submit(1, [1, 2, 3], max_tokens=40)
    bench.submit(2, [1, 2, 4], max_tokens=40)
    bench.step()
    bench.submit(3, list(range(10)), max_tokens=2)
    plans = [bench.step() for _ in range(2)]
    taken = [{row.rid: len(row.token_ids) for row in plan.rows} for plan in plans]
    assert taken == [{1: 1, 2: 1, 3: 6}, {1: 3, 2: 1, 3: 4}]


def test_proposals_take_no_block_that_somebody_may_need() -> None:
    s = scheduler(num_blocks=6, block_size=2)
    s.speculation = Speculation(4, lambda: Known([99_000]), Free())
    s.add(sequence(1, 3, max_tokens=9))
    s.add(sequence(2, 3, max_tokens=9))
    assert run(s) == {1: 3, 2: 3}  # two blocks each: two are left, one for each of them
    plan = s.schedule(0.0)
    assert [row.num_proposed for row in plan.rows] == [0, 0]
    commit(s, plan)
    assert s.num_preemptions == 0


class Known(Proposer):
    def __init__(self, tokens: list[int]):
        self._tokens = tokens

    def propose(self, tokens: Any, most: int) -> list[int]:
        return (self._tokens * most)[:most]


@pytest.mark.parametrize("right", [RIGHT, WRONG, (True, False)])
def test_nobody_finds_the_kv_of_what_did_not_come(right: tuple[bool, ...]) -> None:
    bench = Bench(PagedRunner(64, 4))
    speculating(bench, right)
    answers = [bench.submit(rid, [rid, 1, 2, 3, 4], max_tokens=9 + rid) for rid in range(6)]
    bench.drain()
    for row in [row for plan in bench.runner.plans for row in plan.rows if row.num_proposed]:
        final = [row.rid, 1, 2, 3, 4, *answers[row.rid].ids]
        run = [*final[: row.start + 1], *row.proposed]
        num_right = next((n for n in range(len(run)) if run[n] != final[n]), len(run))
        assert bench.core.cache.loans.num_known(run) == num_right


@pytest.mark.parametrize("half_done", [False, True])
def test_a_row_that_fails_with_proposals_fails_alone(half_done: bool) -> None:
    bench = Bench(PagedRunner(20, 2))
    bench.runner.half_done = half_done
    speculating(bench, (True, True, False))
    good = bench.submit(1, [1, 2, 3], max_tokens=12)
    bad = bench.submit(2, [1, 2, 3, 4], max_tokens=12)
    bench.step()
    bench.step()
    bench.runner.raising = {2}
    bench.drain()
    assert bad.finish == "error"
    assert good.ids == oracle([1, 2, 3], SamplingParams(max_tokens=12)).ids
    assert bench.core.cache.loans.num_known([1, 2, 3, 4]) <= 3


@pytest.mark.parametrize(
    "asked",
    [{"priority": LOWEST}, {"thinking": Thinking(5, (7, 8))}, {"max_tokens": 1}],
    ids=["draft", "thinking", "last"],
)
def test_some_never_have_proposals(asked: dict[str, Any]) -> None:
    bench = Bench()
    speculating(bench, RIGHT)
    bench.submit(1, [1, 2, 3], **{"max_tokens": 6, **asked})
    for _ in range(5):
        bench.step()
    assert bench.core.stats.snapshot().spec_proposals == 0


def test_where_a_grammar_says_what_may_come_nothing_is_proposed() -> None:
    speculation = Speculation(4, costs=Free())
    seq = Sequence(1, [1, 2, 3, 4, 1, 2, 3], SamplingParams(max_tokens=9))
    seq.grammar = Constraint(Grammar("start: /a+/"))
    assert speculation.propose(seq, 1, 8) == []


def test_after_its_reasoning_an_answer_has_proposals() -> None:
    bench = Bench()
    speculating(bench, RIGHT)
    thinking = Thinking(3, (7, 8))
    answer = bench.submit(1, [1, 2, 3], max_tokens=20, thinking=thinking)
    bench.drain()
    assert answer.ids == oracle([1, 2, 3], SamplingParams(max_tokens=20, thinking=thinking)).ids
    assert bench.core.stats.snapshot().spec_accepted_tokens > 8


def test_an_update_counts_from_the_next_step_on() -> None:
    bench = Bench()
    speculating(bench, RIGHT)
    answer = bench.submit(1, [1, 2, 3], max_tokens=30)
    bench.step()
    bench.step()
    assert len(answer.ids) == 6
    bench.update(1, max_tokens=8)
    bench.drain()
    assert answer.ids == oracle([1, 2, 3], SamplingParams(max_tokens=8)).ids
    assert answer.finish == "length"


def test_it_is_off_unless_asked_for() -> None:
    assert Bench().core.scheduler.speculation is None
    bench = Bench(settings=EngineSettings(speculation="ngram", speculation_tokens=2))
    bench.submit(1, [1, 2, 3, 4] * 3, max_tokens=9)
    bench.drain()
    assert bench.core.stats.snapshot().spec_proposed_tokens <= 2 * 9


def test_it_proposes_from_all_tokens_of_a_sequence_as_they_come() -> None:
    seq = Sequence(1, [1, 2, 3, 4, 1, 2, 3], SamplingParams(max_tokens=9))
    speculation = Speculation(3, costs=Free())
    assert speculation.propose(seq, 1, 8) == [4, 1, 2]
    seq.tokens += [3, 3, 1, 2, 3]
    assert speculation.propose(seq, 1, 2) == [3, 3]
