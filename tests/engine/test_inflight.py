"""Prompts that begin alike and come together."""

from __future__ import annotations

from lmserve.engine.sequence import Sequence, State
from lmserve.messages import LOWEST
from lmserve.sampling import SamplingParams
from lmserve.settings import EngineSettings
from tests.engine.paged import Answer, Bench, PagedRunner, oracle
from tests.engine.test_scheduler import commit, run, scheduler

PROMPT = [i % 50 for i in range(1000)]
MAX3 = SamplingParams(max_tokens=3)


def bench(num_blocks: int = 200, block_size: int = 16, **settings: int | bool) -> Bench:
    runner = PagedRunner(num_blocks, block_size, max_model_len=1200)
    return Bench(runner, EngineSettings(**settings))


def cost(b: Bench, n: int) -> tuple[int, int, list[Answer]]:
    """Prompt tokens run, blocks held as the first tokens are out, and the answers."""
    answers = [b.submit(rid, PROMPT, max_tokens=3) for rid in range(n)]
    num_tokens = 0
    while not all(answer.ids for answer in answers):
        num_tokens += sum(len(row.token_ids) for row in b.step().rows)
    held = b.core.cache.counts().held
    b.drain()
    assert {tuple(answer.ids) for answer in answers} == {
        tuple(oracle(PROMPT, MAX3, max_model_len=1200).ids)
    }
    return num_tokens, held, answers


def test_eight_of_a_prompt_cost_little_more_than_one() -> None:
    one_tokens, one_held, _ = cost(bench(), 1)
    tokens, held, answers = cost(bench(), 8)
    assert (one_tokens, one_held) == (1000, 63)
    assert tokens == 1000 + 1 + 7  # a token of each other's prompt, beside the first's decode
    assert held == 62 + 8
    assert [answer.num_cached_tokens for answer in answers] == [0] + [999] * 7


def test_without_a_prefix_cache_nobody_waits() -> None:
    b = bench(num_blocks=600, prefix_cache=False, max_step_tokens=9000)
    assert cost(b, 8)[0] == 8000


def same(rid: int, num_tokens: int = 20, own: int = 0, priority: int = 0) -> Sequence:
    """The first tokens are everybody's, the last ones its own."""
    prompt = [*range(num_tokens - own), *(1000 * (rid + 1) + i for i in range(own))]
    return Sequence(rid, prompt, SamplingParams(max_tokens=9), priority=priority)


def other(rid: int, num_tokens: int) -> Sequence:
    return Sequence(rid, [rid * 1000 + i for i in range(num_tokens)], SamplingParams(max_tokens=9))


def test_one_that_shares_nothing_passes_those_that_wait() -> None:
    s = scheduler()
    for seq in (same(1, 38), same(2, 38), other(3, 4)):
        s.add(seq)
    assert [run(s), run(s), run(s)] == [{1: 16}, {1: 16}, {1: 6, 3: 4}]
    assert run(s) == {1: 1, 3: 1, 2: 1}


def test_prompts_that_part_share_what_is_alike() -> None:
    s = scheduler(budget=64)
    for rid in (1, 2, 3):
        s.add(same(rid, 14, own=4))  # ten alike: two blocks and a half
    assert run(s) == {1: 14}
    assert run(s) == {1: 1, 2: 4, 3: 4}


def test_those_alike_beyond_the_leaders_wait_again_for_one_of_them() -> None:
    s = scheduler(budget=64)
    s.add(same(1, 10, own=2))
    s.add(same(2, 30, own=1))
    s.add(same(3, 30, own=1))
    assert run(s) == {1: 10}
    assert run(s) == {1: 1, 2: 22}
    assert run(s) == {1: 1, 2: 1, 3: 1}


def test_less_than_a_block_is_not_waited_for() -> None:
    s = scheduler()
    for rid in (1, 2, 3):
        s.add(same(rid, 4))  # the last of the four is run by each
    assert run(s) == {1: 4, 2: 4, 3: 4}


def test_what_another_has_run_is_not_waited_for() -> None:
    s = scheduler(block_size=4, budget=16)
    first = same(1, 38)
    s.add(first)
    run(s)
    s.add(same(2, 17))  # all of it is known but its last token
    assert [run(s), run(s)] == [{1: 16}, {1: 6, 2: 1}]
    s.add(same(3, 38))
    assert run(s) == {1: 1, 2: 1, 3: 2}  # the tail is not in the tree: nobody asked in time


def test_the_more_urgent_never_waits_for_the_less_urgent() -> None:
    s = scheduler(budget=8)
    s.add(same(1, 20, priority=5))
    assert run(s) == {1: 8}
    s.add(same(2, 20, priority=0))
    s.add(same(3, 20, priority=5))
    assert [run(s), run(s)] == [{2: 8}, {2: 4, 1: 4}]
    assert [run(s), run(s)] == [{2: 1, 1: 7}, {2: 1, 1: 1, 3: 1}]


def test_whoever_waits_goes_on_as_soon_as_its_leader_is_gone() -> None:
    for end in ("finish", "fail", "preempt"):
        s = scheduler()
        leader = same(1, 38)
        s.add(leader)
        s.add(same(2, 38))
        assert run(s) == {1: 16}
        if end == "preempt":
            s._preempt(leader)
            assert run(s) == {1: 16}  # it comes back before those that came later
            continue
        s.finish(leader, failed=end == "fail")
        assert run(s) == {2: 16}
        assert s.running[2].num_cached == (0 if end == "fail" else 16)


def test_one_that_waits_may_end_before_its_leader() -> None:
    s = scheduler()
    leader, follower = same(1, 38), same(2, 38)
    s.add(leader)
    s.add(follower)
    run(s)
    assert len(s.waiting) == 1 and s.get(2) is follower
    s.finish(follower)
    assert follower.state is State.FINISHED and s.get(2) is None
    assert [run(s), run(s), run(s)] == [{1: 16}, {1: 6}, {1: 1}]
    s.finish(leader)
    assert not s.has_work


def test_a_sequence_that_does_not_read_the_cache_neither_waits_nor_is_waited_for_in_vain() -> None:
    class Whole(Sequence):
        num_matchable = 0

    s = scheduler(budget=64)
    prompt = list(range(20))
    known = same(1, 20)
    s.add(known)
    run(s)
    s.add(Whole(2, prompt, MAX3))
    s.add(same(3, 20))
    assert run(s) == {1: 1, 2: 20, 3: 1}
    assert s.get(2).num_cached == 0


def test_drafts_wait_for_drafts_and_nobody_else_does() -> None:
    s = scheduler()
    s.add(same(1, 38, priority=LOWEST))
    s.add(same(2, 38, priority=LOWEST))
    assert run(s) == {1: 16}
    s.add(same(3, 38))
    assert [run(s), run(s)] == [{3: 16}, {3: 6}]  # what the first draft ran is found
    assert [list(run(s)), list(run(s))] == [[3, 1], [3, 1, 2]]


def test_a_draft_that_waited_for_another_goes_before_those_that_passed_it() -> None:
    s = scheduler()
    s.add(same(1, 22, priority=LOWEST))
    s.add(same(2, 60, priority=LOWEST))
    passing = other(3, 40)
    passing.priority = LOWEST
    s.add(passing)
    assert [run(s), run(s)] == [{1: 16}, {1: 6, 3: 10}]
    assert [run(s), run(s), run(s)] == [{1: 1, 2: 15}, {1: 1, 2: 15}, {1: 1, 2: 8, 3: 7}]


def test_a_tail_is_shared_by_a_copy_and_both_go_on() -> None:
    s = scheduler(budget=64)
    for rid in (1, 2):
        s.add(same(rid, 10))
    commit(s, s.schedule(0.0))
    tail = s.running[1].blocks[2]
    plan = s.schedule(0.0)
    copies = {copy.target: (copy.source, copy.num_tokens) for copy in plan.copies}
    assert copies == {s.running[1].blocks[2]: (tail, 2), s.running[2].blocks[2]: (tail, 1)}
    assert [list(row.token_ids) for row in plan.rows] == [[99_010], [9]]
    commit(s, plan)


def test_where_no_block_is_left_the_tail_is_not_shared() -> None:
    s = scheduler(num_blocks=6, budget=64)
    for rid in (1, 2):
        s.add(same(rid, 10))
    run(s)
    assert s.cache.counts().free == 3
    s.cache.grow(s.running[1], 24)
    assert [list(run(s)), list(run(s))] == [[1], [1]]  # nor a block for the second
    s.finish(s.running[1])
    plan = s.schedule(0.0)
    assert [(row.rid, row.start) for row in plan.rows] == [(2, 9)]
