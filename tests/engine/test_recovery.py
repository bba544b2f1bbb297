"""Steps that fail as a whole, run again in parts."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmserve.device.host import HostDevice
from lmserve.engine.plan import BlockCopy, PromptShare, Row, StepPlan, StepResult
from lmserve.engine.recovery import MIN_STEP_TOKENS, Recovery, halves
from lmserve.sampling import SamplingParams

from .paged import PagedRunner, chain

SIZE = 4  # tokens in a block
GREEDY = SamplingParams(temperature=0.0)


@dataclass
class SmallRunner:
    """Runs out of memory where a plan has more than so many tokens, or one of these requests."""

    paged: PagedRunner
    room: int
    greedy_rids: frozenset[int] = frozenset()
    sizes: list[int] = field(default_factory=list)
    num_released: int = 0
    limits: list[int] = field(default_factory=list)
    grows_by: int = 0  # room found by releasing what was cached

    def attempt(self, plan: StepPlan) -> StepResult:
        self.sizes.append(plan.num_tokens)
        if plan.num_tokens > self.room or self.greedy_rids & {row.rid for row in plan.rows}:
            self.paged.compute(plan)  # all is written before
            raise MemoryError(f"{plan.num_tokens} tokens")
        launched = self.paged.launch(plan)
        launched.draw(plan.rows, None)
        return launched.result()

    def release(self) -> None:
        self.num_released += 1
        self.room += self.grows_by

    def recover(self, plan: StepPlan) -> StepResult:
        recovery = Recovery(
            lambda error: isinstance(error, MemoryError), self.release, self.limits.append
        )
        result = recovery.run(plan, self.attempt)
        assert self.paged.violations == []
        return result


def row(rid: int, start: int, num: int, *, samples: bool = True, told: bool = False) -> Row:
    """Its blocks are its own: 8 of them."""
    tokens = [(7 * rid + at) % 50 for at in range(start + num)]
    prompt = PromptShare(range(start + 1, start + num), 0, range(start, start + num))
    return Row(
        rid,
        tokens[start:],
        start,
        range(8 * rid, 8 * rid + 8),
        GREEDY if samples else None,
        history=tokens,
        num_prompt_tokens=len(tokens),
        prompt=prompt if told and num > 1 else None,
    )


def runner_for(plan: StepPlan, num_rows: int = 8) -> PagedRunner:
    """What the rows ran before is in their blocks, or in the sources of the copies."""
    runner = PagedRunner(8 * num_rows + 8, SIZE)
    for each in plan.rows:
        runner.memory.write(each.blocks, 0, chain(each.history[: each.start]))
    for each in plan.copies:
        kv = runner.memory.blocks[each.target]
        runner.memory.blocks[each.source], runner.memory.blocks[each.target] = kv, [None] * SIZE
    return runner


def whole(plan: StepPlan) -> tuple[StepResult, PagedRunner]:
    runner = runner_for(plan)
    launched = runner.launch(plan)
    launched.draw(plan.rows, None)
    return launched.result(), runner


def flat(result: StepResult) -> object:
    pooled = {rid: told.tolist() for rid, told in result.pooled.items()}
    return result.tokens, result.errors, result.logprobs, result.prompt_logprobs, pooled


@st.composite
def plans(draw: st.DrawFn) -> StepPlan:
    rows, copies = [], []
    for rid in range(draw(st.integers(1, 8))):
        start = draw(st.integers(0, 14))
        num = draw(st.integers(1, 12))
        rows.append(row(rid, start, num, samples=draw(st.booleans()), told=draw(st.booleans())))
        if start % SIZE and draw(st.booleans()):
            copies.append(BlockCopy(64 + rid, 8 * rid + start // SIZE, start % SIZE))
    fresh = [each.blocks[-(-each.start // SIZE)] for each in rows if -(-each.start // SIZE) * SIZE]
    return StepPlan(
        rows, copies, draw(st.lists(st.sampled_from(fresh), unique=True)) if fresh else []
    )


@given(plans(), st.integers(1, 40))
def test_in_parts_it_comes_to_the_same(plan, room):
    expected, runner = whole(plan)
    small = SmallRunner(runner_for(plan), room)
    assert flat(small.recover(plan)) == flat(expected)
    assert small.paged.memory.blocks == runner.memory.blocks


@given(plans(), st.integers(1, 40), st.sets(st.integers(0, 7)))
def test_who_fits_never_fails_with_who_does_not(plan, room, greedy):
    expected, _ = whole(plan)
    small = SmallRunner(runner_for(plan), room, frozenset(greedy))
    result = small.recover(plan)
    rids = {each.rid for each in plan.rows}
    assert result.errors.keys() == rids & greedy
    assert all("MemoryError" in text for text in result.errors.values())
    assert result.tokens == {r: t for r, t in expected.tokens.items() if r not in greedy}


def test_at_first_memory_is_released_and_the_same_tried_again():
    plan = StepPlan([row(rid, 0, 10) for rid in range(4)])
    small = SmallRunner(runner_for(plan), 30, grows_by=10)
    assert small.recover(plan).tokens.keys() == {0, 1, 2, 3}
    assert small.sizes == [40, 40]
    assert small.num_released == 1
    assert small.limits == []


def test_steps_are_smaller_from_then_on(caplog):
    plan = StepPlan([row(rid, 0, 25) for rid in range(8)])
    with caplog.at_level(logging.WARNING):
        small = SmallRunner(runner_for(plan), 60)
        small.recover(plan)
    assert small.limits == [MIN_STEP_TOKENS]
    assert small.sizes == [200, 200, 100, 50, 50, 100, 50, 50]
    assert len(caplog.records) == 1
    assert "100 tokens ran out of memory: steps have 64 at most" in caplog.text


def test_a_small_step_that_does_not_fit_lowers_nothing():
    plan = StepPlan([row(0, 0, 20)])
    small = SmallRunner(runner_for(plan), 0)
    assert list(small.recover(plan).errors) == [0]
    assert small.limits == []
    assert small.sizes == [20, 20, 10, 5, 2, 1]  # what follows a part that failed is not run


def test_what_fails_otherwise_is_run_row_by_row():
    plan = StepPlan([row(rid, 0, 10) for rid in range(3)])
    runner = runner_for(plan)
    runner.raising = {1}
    runner.half_done = True
    small = SmallRunner(runner, 100)
    result = small.recover(plan)
    assert result.errors == {1: "RuntimeError: injected"}
    assert result.tokens.keys() == {0, 2}
    assert small.limits == []
    assert small.sizes == [30, 10, 10, 10]


def test_a_failure_that_is_known_is_not_met_again():
    plan = StepPlan([row(0, 0, 10)])
    recovery = Recovery(lambda error: False, lambda: None, lambda num: None)
    result = recovery.run(plan, lambda plan: StepResult(), ValueError("so it was"))
    assert result.errors == {0: "ValueError: so it was"}


def test_copies_are_made_though_no_row_is_left():
    plan = StepPlan([row(0, 2, 4), row(1, 2, 4)], [BlockCopy(64, 0, 2), BlockCopy(65, 8, 2)], [9])
    small = SmallRunner(runner_for(plan), 3)
    expected = copy.deepcopy(small.paged.memory.blocks)
    expected[0], expected[8] = expected[64], expected[65]
    assert flat(small.recover(StepPlan([], plan.copies, plan.scrubs))) == flat(StepResult())
    assert small.paged.memory.blocks == expected


def test_a_traceback_holds_no_memory():
    plan, failures = StepPlan([row(0, 0, 1)]), []

    def is_out_of_memory(error: BaseException) -> bool:
        failures.append(error.__traceback__)
        return True

    def attempt(plan: StepPlan) -> StepResult:
        raise MemoryError

    Recovery(is_out_of_memory, lambda: None, lambda num: None).run(plan, attempt)
    assert failures == [None, None]


def test_proposed_tokens_stay_with_the_token_they_follow():
    base = row(0, 5, 3)
    proposing = Row(
        0, [*base.token_ids, 1, 2], 5, base.blocks, GREEDY, base.history, num_proposed=2
    )
    first, rest = halves([proposing])
    assert [list(each.token_ids) for each in (*first, *rest)] == [
        list(base.token_ids[:2]),
        [base.token_ids[2], 1, 2],
    ]
    assert (first[0].sampling, first[0].num_proposed, rest[0].num_proposed) == (None, 0, 2)
    assert rest[0].start == 7
    assert halves(rest) == []


@pytest.mark.parametrize("sizes", [[1], [1, 1], [5], [1, 9], [9, 1], [3, 3, 3]])
def test_halves_are_all_of_it(sizes):
    rows = [row(rid, 0, num, told=True) for rid, num in enumerate(sizes)]
    parts = halves(rows)
    if sizes == [1]:
        assert parts == []
        return
    assert all(parts)
    assert max(sum(len(each.token_ids) for each in part) for part in parts) < sum(sizes)
    for each in rows:
        pieces = [piece for part in parts for piece in part if piece.rid == each.rid]
        assert [t for piece in pieces for t in piece.token_ids] == list(each.token_ids)
        assert [piece.start for piece in pieces][0] == 0
        assert [bool(piece.sampling) for piece in pieces] == [False] * (len(pieces) - 1) + [True]
        shares = [piece.prompt for piece in pieces if piece.prompt]
        if each.prompt:
            assert [n for share in shares for n in share.scored] == [*each.prompt.scored]
            assert [n for share in shares for n in share.pooled] == [*each.prompt.pooled]


# --- of a CPU, truly ---------------------------------------------------------------------


def torch_has_no_room() -> None:
    torch.empty(2**50, dtype=torch.uint8)


def python_has_no_room() -> None:
    bytearray(2**60)


@pytest.mark.parametrize("fill", [torch_has_no_room, python_has_no_room])
def test_a_cpu_without_room_is_told_from_other_failures(fill: Callable[[], None]) -> None:
    """What the system says is what the recovery goes by; a row that never fits fails alone."""
    device, plan = HostDevice(), StepPlan([row(rid, 0, 20) for rid in range(1, 5)])
    small = SmallRunner(runner_for(plan), room=80)

    def attempt(part: StepPlan) -> StepResult:
        if any(each.rid == 3 for each in part.rows):
            fill()
        return small.attempt(part)

    recovery = Recovery(device.is_out_of_memory, small.release, small.limits.append)
    result = recovery.run(plan, attempt)
    assert set(result.errors) == {3}
    assert small.num_released
    assert not device.is_out_of_memory(RuntimeError("shapes do not match"))


def test_copies_alone_are_made_once_there_is_room() -> None:
    plan = StepPlan([], [BlockCopy(0, 1, 4)])
    told: list[str] = []

    def attempt(part: StepPlan) -> StepResult:
        assert part.copies == plan.copies
        if not told:
            raise MemoryError
        return StepResult()

    recovery = Recovery(
        lambda error: isinstance(error, MemoryError), lambda: told.append("released"), print
    )
    recovery.run(plan, attempt, MemoryError())
    assert told == ["released"]
    told.clear()
    with pytest.raises(MemoryError):  # who has these blocks cannot go on: the engine ends
        recovery.run(plan, attempt)
