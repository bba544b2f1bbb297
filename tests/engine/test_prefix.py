from __future__ import annotations

import pytest

from lmserve.engine.cache.blocks import IntegrityError
from lmserve.engine.cache.manager import CacheManager
from lmserve.engine.plan import StepPlan
from lmserve.engine.sequence import Sequence
from lmserve.messages import Tenant
from lmserve.sampling import SamplingParams


class Cache(CacheManager):
    """A manager with whole lives of sequences as single calls."""

    def run(self, tokens: list[int], namespace: int = 0) -> Sequence:
        """Admits a sequence and computes all of it."""
        seq = Sequence(0, list(tokens), SamplingParams(), tenant=Tenant(namespace=namespace))
        assert self.admit(seq)
        self.step()
        self.commit(seq, seq.num_behind)
        return seq

    def step(self) -> StepPlan:
        """One that runs nothing but what is to be done to blocks."""
        plan = StepPlan([], **self.take_moves())
        self.end_step(plan)
        return plan

    def know(self, tokens: list[int], namespace: int = 0) -> None:
        """Leaves the tokens in the tree."""
        self.release(self.run(tokens, namespace))
        self.check()

    def num_known(self, tokens: list[int], namespace: int = 0) -> int:
        match = self.tree.match(tokens, len(tokens), namespace)
        return len(match.nodes) * self.block_size + match.num_partial


def test_a_match_is_exact_to_the_token() -> None:
    cache = Cache(16, 4)
    cache.know([1, 2, 3, 4, 5, 6, 7])
    assert cache.num_known([1, 2, 3, 4, 5, 6, 7, 8]) == 7
    assert cache.num_known([1, 2, 3, 4, 5, 9]) == 5
    assert cache.num_known([1, 2, 9]) == 2
    assert cache.num_known([9]) == 0


def test_the_child_that_shares_most_is_found_among_many() -> None:
    cache = Cache(64, 4)
    for last in range(20):
        cache.know([1, last, 50, 50])
    assert cache.num_known([1, 7, 50, 3]) == 3
    assert cache.num_known([1, 19, 99]) == 2
    assert cache.num_known([1, 30]) == 1


def test_at_least_one_token_of_a_known_prompt_is_run() -> None:
    cache = Cache(16, 4)
    cache.know([1, 2, 3, 4, 5, 6, 7, 8])
    seq = Sequence(0, [1, 2, 3, 4, 5, 6, 7, 8], SamplingParams())
    assert cache.admit(seq)
    assert seq.num_computed == 7
    (copy,) = cache.step().copies
    assert (copy.target, copy.num_tokens) == (seq.blocks[1], 3)
    assert copy.source != copy.target


def test_full_blocks_are_shared_and_a_part_is_copied() -> None:
    cache = Cache(16, 4)
    first = cache.run([1, 2, 3, 4, 5, 6])
    second = Sequence(1, [1, 2, 3, 4, 5, 6], SamplingParams())
    assert cache.admit(second)
    assert second.blocks[0] == first.blocks[0]
    assert second.num_computed == 4  # the running sequence's tail is not in the tree yet
    cache.release(first)
    third = Sequence(2, [1, 2, 3, 4, 5, 6], SamplingParams())
    assert cache.admit(third)
    assert third.num_computed == 5
    assert [copy.num_tokens for copy in cache.step().copies] == [1]


def test_the_source_of_a_copy_is_held_until_the_step_has_run() -> None:
    cache = Cache(3, 4)
    cache.know([1, 2, 3])
    first = Sequence(0, [1, 2, 3, 4], SamplingParams())
    assert cache.admit(first)
    plan = StepPlan([], **cache.take_moves())
    (copy,) = plan.copies
    second = Sequence(1, [7] * 8, SamplingParams())
    assert not cache.admit(second)  # one block is free; the source must not be taken
    cache.end_step(plan)
    assert cache.admit(second)
    assert copy.source in second.blocks


def test_a_copy_there_is_no_room_for_is_not_made() -> None:
    cache = Cache(2, 4)
    cache.know([1, 2, 3, 4, 5, 6])
    seq = Sequence(0, [1, 2, 3, 4, 5, 6, 7], SamplingParams())
    assert cache.admit(seq, alone=True)
    assert seq.num_computed == 4
    assert cache.step().copies == []


def test_namespaces_share_nothing() -> None:
    cache = Cache(16, 4)
    cache.know([1, 2, 3, 4, 5], namespace=1)
    assert cache.num_known([1, 2, 3, 4, 5], namespace=1) == 5
    assert cache.num_known([1, 2, 3, 4, 5]) == 0


def test_a_longer_tail_takes_the_place_of_its_beginning() -> None:
    cache = Cache(16, 4)
    cache.know([1, 2])
    cache.know([1, 2, 3])
    cache.know([1, 2])
    assert cache.counts().cached == 1
    cache.know([1, 2, 3, 4])
    assert cache.counts().cached == 1


def test_a_block_computed_again_costs_no_second_block_once_the_first_is_idle() -> None:
    cache = Cache(16, 4)
    cache.know([1, 2, 3, 4])
    seq = cache.run([1, 2, 3, 4])  # its last token had to be run: a block of its own
    assert cache.counts().held == 1
    assert cache.counts().cached == 0
    assert cache.pool.in_tree[seq.blocks[0]]


def test_sequences_that_computed_the_same_keep_their_own_blocks() -> None:
    cache = Cache(16, 2)
    one, two = (Sequence(rid, [1, 2, 3, 4, 5], SamplingParams()) for rid in (0, 1))
    assert cache.admit(one) and cache.admit(two)
    cache.commit(one, 5)
    cache.commit(two, 5)
    assert set(one.blocks).isdisjoint(two.blocks)
    cache.check()
    cache.release(one)
    cache.release(two)
    cache.check()
    assert cache.counts().cached == 3


def test_a_sequence_finds_its_place_again_when_its_twin_was_evicted() -> None:
    cache = Cache(8, 2)
    one, two = (Sequence(rid, [1, 2], SamplingParams()) for rid in (0, 1))
    assert cache.admit(one) and cache.admit(two)
    cache.commit(one, 2)
    cache.commit(two, 2)  # hangs below the block of `one`
    cache.release(one)
    assert cache.clear() == 1
    two.tokens += [3, 4]
    assert cache.grow(two, 4)
    cache.commit(two, 2)
    cache.check()
    assert cache.num_known([1, 2, 3, 4]) == 4


def test_a_sequence_leaves_its_blocks_although_its_twin_was_evicted() -> None:
    cache = Cache(8, 2)
    one, two = (Sequence(rid, [1, 2], SamplingParams()) for rid in (0, 1))
    assert cache.admit(one) and cache.admit(two)
    cache.commit(one, 2)
    cache.commit(two, 2)
    cache.release(one)
    assert cache.clear() == 1
    cache.release(two)  # no tail of its own to add, and yet
    assert cache.num_known([1, 2]) == 2


def test_the_least_recently_used_leaf_goes_first() -> None:
    cache = Cache(4, 2)
    cache.know([1, 1])
    cache.know([2, 2])
    cache.know([3, 3])
    cache.know([1, 1, 9])  # used again
    seq = Sequence(0, [5] * 4, SamplingParams())
    assert cache.admit(seq)
    assert [cache.num_known([n, n]) for n in (1, 2, 3)] == [2, 0, 0]


def test_parents_of_live_blocks_are_not_evicted() -> None:
    cache = Cache(8, 2)
    cache.know([1, 1, 2, 2])
    cache.know([1, 1, 3, 3])
    seq = cache.run([1, 1, 2, 2, 5])
    assert cache.clear() == 1
    assert cache.num_known([1, 1, 2, 2]) == 4
    cache.release(seq)
    cache.check()


def test_a_pin_keeps_blocks_until_it_is_taken_out() -> None:
    cache = Cache(4, 2)
    cache.know([1, 1, 2, 2, 3])
    pin = cache.pin([1, 1, 2, 2, 3])
    assert cache.counts().pinned == 3
    assert cache.clear() == 0
    cache.unpin(pin)
    cache.unpin(pin)  # no harm
    cache.check()
    assert cache.clear() == 3


def test_pins_of_two_sessions_count_apart() -> None:
    cache = Cache(4, 2)
    cache.know([1, 1, 2, 2])
    long, short = cache.pin([1, 1, 2, 2]), cache.pin([1, 1])
    cache.unpin(long)
    assert cache.counts().pinned == 1
    assert cache.clear() == 1
    cache.unpin(short)
    assert cache.clear() == 1


def test_a_pin_is_broken_only_for_a_sequence_that_is_alone() -> None:
    cache = Cache(3, 2)
    cache.know([1, 1, 2, 2])
    pin = cache.pin([1, 1, 2, 2])
    seq = Sequence(0, [7] * 6, SamplingParams())
    assert not cache.admit(seq)
    assert cache.admit(seq, alone=True)
    cache.unpin(pin)  # of nodes that are gone
    cache.check()
    assert cache.counts().held == 3


def test_nothing_a_failed_sequence_had_to_do_with_is_found_again() -> None:
    cache = Cache(8, 2)
    cache.know([1, 1])
    failed = cache.run([1, 1, 2, 2, 3])
    other = cache.run([1, 1, 4])
    cache.know([1, 1, 2, 2, 5])
    shared = failed.blocks[0]
    cache.forget(failed)
    cache.check()
    assert cache.num_known([1, 1, 2, 2, 5]) == 0
    assert len(cache.pool.suspect) == 4  # its three, and the one that was computed from them
    assert other.blocks[0] == shared  # who holds it goes on
    other.tokens += [4]
    cache.commit(other, 1)
    cache.release(other)
    cache.check()
    assert cache.num_known([1, 1, 4]) == 0
    assert cache.counts().free == 8


def test_a_suspect_block_is_zeroed_once_before_it_is_used_again() -> None:
    cache = Cache(3, 2)
    cache.forget(cache.run([1, 1, 2]))
    seq = Sequence(0, [3, 3, 4, 4, 5], SamplingParams())
    assert cache.admit(seq)
    assert sorted(cache.step().scrubs) == [0, 1]  # the third was never the failed one's
    cache.release(seq)
    assert cache.admit(seq)
    assert cache.step().scrubs == []


def test_a_suspect_block_given_out_and_taken_back_stays_suspect() -> None:
    cache = Cache(3, 2)
    cache.forget(cache.run([1, 1, 2]))
    seq = Sequence(0, [3, 3, 4, 4, 5], SamplingParams())
    assert cache.admit(seq)
    cache.release(seq)  # before a step ran
    assert cache.step().scrubs == []
    assert cache.admit(seq)
    assert sorted(cache.step().scrubs) == [0, 1]


def test_a_copy_of_its_own_is_offered_although_its_twin_failed() -> None:
    cache = Cache(8, 2)
    one, two = (Sequence(rid, [1, 2, 3, 4], SamplingParams()) for rid in (0, 1))
    assert cache.admit(one) and cache.admit(two)
    cache.commit(one, 4)
    cache.commit(two, 4)
    cache.forget(one)
    cache.check()
    assert cache.num_known([1, 2, 3, 4]) == 0
    cache.release(two)
    cache.check()
    assert cache.num_known([1, 2, 3, 4]) == 4


def test_a_session_goes_on_from_its_own_pin_beside_others() -> None:
    cache = Cache(12, 4)
    text = list(range(40))
    cache.know(text)
    pin = cache.pin(text)
    assert cache.admit(Sequence(1, [99], SamplingParams()))
    assert cache.counts().free == 1
    again = Sequence(2, [*text, 40], SamplingParams())
    assert cache.admit(again)
    assert again.num_computed == 40
    cache.check()
    cache.unpin(pin)


def test_the_part_of_a_pinned_block_is_copied_without_room_for_its_source() -> None:
    cache = Cache(3, 4)
    cache.know([1, 2, 3])
    cache.pin([1, 2, 3])
    seq = Sequence(0, [1, 2, 3, 4, 5], SamplingParams())
    assert cache.admit(seq)
    assert seq.num_computed == 3


def test_a_sequence_that_is_alone_breaks_pins_to_grow() -> None:
    cache = Cache(2, 2)
    cache.know([1, 1])
    cache.pin([1, 1])
    seq = cache.run([7, 7])
    assert not cache.grow(seq, 3)
    assert cache.grow(seq, 3, alone=True)
    cache.check()


def test_a_namespace_is_kept_only_while_it_holds_something() -> None:
    cache = Cache(4, 2)
    for namespace in range(100):
        assert cache.num_known([1, 2], namespace) == 0
        cache.forget(cache.run([1], namespace))
    assert not cache.tree._roots
    cache.know([1, 2, 3], namespace=5)
    cache.know([1, 2, 3, 4], namespace=5)  # takes the place of its beginning
    assert list(cache.tree._roots) == [5]
    assert cache.num_known([1, 2, 3, 4], 5) == 4
    cache.clear()
    assert not cache.tree._roots
    cache.know([1], namespace=5)
    cache.know([1, 2], namespace=5)  # the only child gives way
    assert cache.num_known([1, 2], 5) == 2


def test_without_prefix_cache_nothing_is_found_and_nothing_kept() -> None:
    cache = Cache(8, 2, prefix_cache=False)
    cache.know([1, 1, 2, 2, 3])
    assert cache.counts().free == 8
    assert (cache.prefix_queries, cache.prefix_hits) == (5, 0)


def test_prefix_hits_are_counted_once_per_request() -> None:
    cache = Cache(8, 2)
    cache.know([1, 1, 2, 2])
    seq = cache.run([1, 1, 2, 2, 3])
    cache.release(seq)
    assert cache.admit(seq)  # back from preemption
    assert (cache.prefix_queries, cache.prefix_hits) == (9, 4)
    assert seq.num_cached == 4


def test_touching_one_prefix_for_ever_does_not_grow_the_eviction_order() -> None:
    cache = Cache(8, 2)
    for _ in range(500):
        cache.know([1, 1, 2])
        cache.unpin(cache.pin([1, 1, 2]))
    assert len(cache.tree._idle) < 100
    assert cache.clear() == 2


def test_check_finds_a_node_in_the_wrong_place() -> None:
    cache = Cache(8, 2)
    cache.know([1, 1, 2])
    node = cache.tree.match([1, 1], 2).nodes[0]
    node.keys.append((0,))
    with pytest.raises(IntegrityError, match="out of order"):
        cache.check()
