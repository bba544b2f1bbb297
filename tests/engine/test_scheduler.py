from __future__ import annotations

import pytest

from lmserve.engine.cache.manager import CacheManager
from lmserve.engine.plan import StepPlan
from lmserve.engine.policy import WaitingQueue
from lmserve.engine.scheduler import Scheduler
from lmserve.engine.sequence import ALLOWED, Sequence, State
from lmserve.engine.shares import Share
from lmserve.messages import LOWEST
from lmserve.sampling import SamplingParams


def sequence(rid: int, num_tokens: int, *, priority: int = 0, max_tokens: int = 4) -> Sequence:
    prompt = [rid * 1000 + i for i in range(num_tokens)]
    return Sequence(rid, prompt, SamplingParams(max_tokens=max_tokens), priority=priority)


def scheduler(
    num_blocks: int = 64, block_size: int = 4, batch: int = 8, budget: int = 16
) -> Scheduler:
    cache = CacheManager(num_blocks, block_size)
    return Scheduler(cache, max_batch_size=batch, max_step_tokens=budget)


def run(scheduler: Scheduler) -> dict[int, int]:
    """One step that computes the plan; returns the tokens run of each sequence."""
    plan = scheduler.schedule(0.0)
    commit(scheduler, plan)
    return {row.rid: len(row.token_ids) for row in plan.rows}


def commit(scheduler: Scheduler, plan: StepPlan) -> None:
    scheduler.cache.end_step(plan)
    for row in plan.rows:
        seq = scheduler.running[row.rid]
        scheduler.cache.commit(seq, len(row.token_ids))
        if row.sampling is not None:
            seq.tokens.append(99_000 + len(seq.tokens))
    scheduler.cache.check()


def test_a_long_prompt_runs_in_chunks_of_the_budget() -> None:
    s = scheduler()
    s.add(sequence(1, 35))
    assert [run(s), run(s), run(s), run(s)] == [{1: 16}, {1: 16}, {1: 3}, {1: 1}]


def test_waiting_ends_with_the_first_admission() -> None:
    s = scheduler(batch=1)
    first, second = sequence(1, 3), sequence(2, 3)
    first.submitted_s, second.submitted_s = 1.0, 2.0
    s.add(first)
    s.add(second)
    s.schedule(5.0)
    assert (first.queue_s, second.queue_s) == (4.0, None)
    s.finish(first)
    s.schedule(9.0)
    assert (first.queue_s, second.queue_s) == (4.0, 7.0)


def test_coming_back_is_no_first_admission() -> None:
    s = scheduler()
    seq = sequence(1, 3)
    s.add(seq)
    s.schedule(2.0)
    s._preempt(seq)
    s.schedule(9.0)
    assert (seq.state, seq.queue_s) == (State.RUNNING, 2.0)


def test_only_the_last_chunk_samples() -> None:
    s = scheduler()
    s.add(sequence(1, 20))
    plan = s.schedule(0.0)
    assert plan.rows[0].sampling is None
    commit(s, plan)
    assert s.schedule(0.0).rows[0].sampling is not None


def test_decodes_run_in_every_step_beside_a_long_prompt() -> None:
    s = scheduler()
    s.add(sequence(1, 3))
    run(s)
    s.add(sequence(2, 40))
    assert [run(s), run(s), run(s)] == [{1: 1, 2: 15}, {1: 1, 2: 15}, {1: 1, 2: 10}]


def test_the_batch_is_never_larger_than_the_budget_has_tokens() -> None:
    s = scheduler(batch=8, budget=3)
    for rid in range(8):
        s.add(sequence(rid, 1))
    for _ in range(3):
        assert run(s) == {0: 1, 1: 1, 2: 1}


def test_batch_size_limits_what_runs() -> None:
    s = scheduler(batch=2)
    for rid in range(3):
        s.add(sequence(rid, 2))
    assert list(run(s)) == [0, 1]
    s.finish(s.running[0])
    assert list(run(s)) == [1, 2]


def test_less_urgent_requests_wait_for_more_urgent_ones() -> None:
    s = scheduler(batch=1)
    s.add(sequence(1, 2, priority=5))
    s.add(sequence(2, 2, priority=0))
    s.add(sequence(3, 2, priority=0))
    order = []
    for _ in range(3):
        (rid,) = run(s)
        order.append(rid)
        s.finish(s.running[rid])
    assert order == [2, 3, 1]


def test_on_shortage_the_last_to_come_is_preempted_and_comes_back_by_a_match() -> None:
    s = scheduler(num_blocks=5, block_size=2)
    s.add(sequence(1, 4))
    s.add(sequence(2, 3))
    run(s)  # 2 and 2 blocks, one spare
    second = s.running[2]
    s.add(sequence(3, 1))
    assert run(s) == {1: 1, 2: 1}
    assert run(s) == {1: 1}  # 2 needed a block and ranked last
    assert second.state is State.PREEMPTED
    assert s.num_preemptions == 1
    assert second.blocks == []
    s.finish(s.running[1])
    plan = s.schedule(0.0)
    assert [row.rid for row in plan.rows] == [2, 3]  # in front of those that came later
    assert plan.rows[0].start == 4
    assert list(plan.rows[0].token_ids) == second.tokens[4:]


def test_the_less_urgent_is_preempted_and_taken_out_of_the_plan() -> None:
    s = scheduler(num_blocks=4, block_size=2)
    s.add(sequence(1, 2, priority=1))
    run(s)
    s.add(sequence(2, 1, priority=0))
    assert run(s) == {1: 1, 2: 1}
    assert run(s) == {1: 1, 2: 1}
    plan = s.schedule(0.0)  # 1 came first and had its row when 2 needed a block
    assert [row.rid for row in plan.rows] == [2]
    assert list(s.running) == [2]
    commit(s, plan)


def test_a_newcomer_leaves_a_block_to_each_that_runs() -> None:
    s = scheduler(num_blocks=4, block_size=2)
    s.add(sequence(1, 3, max_tokens=2))
    run(s)
    s.add(sequence(2, 3, max_tokens=2))
    assert run(s) == {1: 1}  # two blocks are free, and 1 may need one of them
    s.finish(s.running[1])
    assert run(s) == {2: 3}


def test_after_a_preemption_nobody_is_admitted_in_the_same_step() -> None:
    s = scheduler(num_blocks=6, block_size=2)
    s.add(sequence(1, 2, priority=1))
    s.add(sequence(2, 4, priority=1))
    assert [run(s), run(s), run(s)] == [{1: 2, 2: 4}, {1: 1, 2: 1}, {1: 1, 2: 1}]
    s.add(sequence(3, 1, priority=0))
    assert run(s) == {1: 1}  # the three blocks that 2 lost are not for 3 yet
    assert s.num_preemptions == 1
    assert len(s.waiting) == 2


def test_chunks_go_to_the_most_urgent_prompt_first() -> None:
    s = scheduler(budget=8)
    s.add(sequence(1, 20, priority=5))
    assert run(s) == {1: 8}
    s.add(sequence(2, 20, priority=0))
    s.add(sequence(3, 20, priority=5))
    assert [run(s), run(s), run(s)] == [{2: 8}, {2: 8}, {2: 4, 1: 4}]
    assert run(s) == {2: 1, 1: 7}


def test_prompts_equally_urgent_run_in_the_order_they_came() -> None:
    s = scheduler(budget=8)
    s.add(sequence(1, 6))
    s.add(sequence(2, 20))
    assert [run(s), run(s)] == [{1: 6, 2: 2}, {1: 1, 2: 7}]
    s.add(sequence(3, 20))
    assert [run(s), run(s)] == [{1: 1, 2: 7}, {1: 1, 2: 4, 3: 3}]


def test_a_short_urgent_prompt_does_not_wait_for_a_long_one() -> None:
    s = scheduler(budget=8)
    s.add(sequence(1, 100, priority=5))
    run(s)
    s.add(sequence(2, 3, priority=0))
    s.add(sequence(3, 3, priority=9))
    assert run(s) == {2: 3, 1: 5}


def test_a_sequence_alone_gets_the_whole_pool() -> None:
    s = scheduler(num_blocks=3, block_size=2, budget=64)
    s.add(sequence(1, 5, max_tokens=2))
    assert run(s) == {1: 5}
    assert run(s) == {1: 1}
    assert s.num_preemptions == 0


# --- drafts -------------------------------------------------------------------------------


def draft(rid: int, num_tokens: int, *, max_tokens: int = 1) -> Sequence:
    return sequence(rid, num_tokens, priority=LOWEST, max_tokens=max_tokens)


def test_a_draft_alone_has_the_whole_step() -> None:
    s = scheduler(budget=16)
    s.add(draft(1, 20))
    assert [run(s), run(s)] == [{1: 16}, {1: 4}]


def test_beside_decodes_a_draft_gets_little_and_beside_prompts_nothing() -> None:
    s = scheduler(budget=16)
    s.add(sequence(1, 20))
    s.add(draft(2, 9))
    assert [run(s), run(s), run(s), run(s)] == [{1: 16}, {1: 4}, {1: 1, 2: 2}, {1: 1, 2: 2}]
    s.add(sequence(3, 3))
    assert run(s) == {1: 1, 3: 3}


def test_a_draft_gives_its_place_to_whoever_waits_and_goes_on_later() -> None:
    s = scheduler(batch=1)
    putoff = draft(1, 40)
    s.add(putoff)
    assert run(s) == {1: 16}
    s.add(sequence(2, 3))
    assert run(s) == {2: 3}
    assert putoff.state is State.PREEMPTED
    s.finish(s.running[2])
    plan = s.schedule(0.0)
    assert [(row.rid, row.start) for row in plan.rows] == [(1, 16)]  # what it ran is found again


def test_a_draft_gives_its_blocks_to_whoever_waits() -> None:
    s = scheduler(num_blocks=8, block_size=2)
    s.add(draft(1, 14))
    run(s)
    s.add(sequence(2, 12, max_tokens=2))
    assert run(s) == {2: 12}


def test_a_draft_gives_its_blocks_to_a_decode_and_nobody_gives_it_one() -> None:
    s = scheduler(num_blocks=4, block_size=2)
    s.add(sequence(1, 3, max_tokens=5))
    run(s)
    s.add(draft(2, 1, max_tokens=4))
    assert run(s) == {1: 1, 2: 1}  # of the spare block, the first has need next
    assert run(s) == {1: 1, 2: 1}
    assert run(s) == {1: 1}
    assert list(s.running) == [1]


def test_drafts_run_in_the_order_they_came() -> None:
    s = scheduler(budget=8)
    s.add(draft(1, 10))
    s.add(draft(2, 10))
    assert [run(s), run(s)] == [{1: 8}, {1: 2, 2: 6}]


def test_a_draft_breaks_no_pin_and_ends_where_there_is_no_room_else() -> None:
    s = scheduler(num_blocks=4, block_size=2)
    pinned = sequence(1, 6, max_tokens=1)
    s.add(pinned)
    run(s)
    s.finish(pinned)
    s.cache.pin(pinned.tokens[:6])
    s.add(draft(2, 6))
    assert run(s) == {}
    assert [seq.rid for seq in s.take_dropped()] == [2]
    assert s.take_dropped() == []
    assert not s.has_work
    assert s.cache.counts().pinned == 3


def test_finishing_works_in_every_state_and_frees_the_blocks() -> None:
    s = scheduler(batch=1)
    running, waiting = sequence(1, 9), sequence(2, 9)
    s.add(running)
    s.add(waiting)
    run(s)
    s.finish(waiting)
    s.finish(running)
    assert not s.has_work
    assert s.cache.counts().held == 0
    assert s.get(1) is None and s.get(2) is None


def test_states_change_only_as_the_table_says() -> None:
    seq = sequence(1, 1)
    with pytest.raises(AssertionError):
        seq.to(State.PREEMPTED)
    seq.to(State.RUNNING)
    seq.to(State.FINISHED)
    assert set(ALLOWED) == set(State)
    for state in State:
        with pytest.raises(AssertionError):
            seq.to(state)


def test_a_removed_request_leaves_the_queue_in_order() -> None:
    queue = WaitingQueue()
    sequences = [sequence(rid, 1) for rid in range(4)]
    share = Share()
    for arrival, seq in enumerate(sequences):
        seq.arrival, seq.share = arrival, share
        queue.push(seq)
    queue.remove(0)
    queue.remove(2)
    assert len(queue) == 2
    assert [queue.pop().rid, queue.pop().rid] == [1, 3]
    assert len(queue) == 0


def test_requests_that_give_up_do_not_pile_up_in_the_queue() -> None:
    queue, share = WaitingQueue(), Share()
    for rid in range(1000):
        seq = sequence(rid, 1)
        seq.arrival, seq.share = rid, share
        queue.push(seq)
        if rid % 10:
            queue.remove(rid)
    assert queue._num_entries == len(queue._heaps[share]) <= 2 * len(queue) + 64
    assert [queue.pop().rid for _ in range(len(queue))] == list(range(0, 1000, 10))
    for rid in range(1000):
        seq = sequence(rid, 1)
        seq.share = share
        queue.push(seq)
        queue.remove(rid)
    assert queue._num_entries <= 64
