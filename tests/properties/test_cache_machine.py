"""Pool, tree and manager against a memory that knows whose KV lies in which slot."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from lmserve.engine.cache.manager import CacheManager
from lmserve.engine.cache.prefix import Node, Pin
from lmserve.engine.plan import StepPlan
from lmserve.engine.sequence import Sequence
from lmserve.messages import Tenant
from lmserve.sampling import SamplingParams
from tests.engine.paged import POISON, PagedMemory, chain

TOKENS = st.lists(st.sampled_from([0, 0, 0, 1]), min_size=1, max_size=14)


class CacheMachine(RuleBasedStateMachine):
    """Sequences with no scheduler: admitted, computed and released in any order."""

    @initialize(
        num_blocks=st.sampled_from([16, 10, 7, 24, 4, 2, 1]),
        block_size=st.sampled_from([2, 3, 4, 1]),
    )
    def start(self, num_blocks: int, block_size: int) -> None:
        self.size = block_size
        self.cache = CacheManager(num_blocks, block_size)
        self.memory = PagedMemory(num_blocks, block_size)
        self.live: list[Sequence] = []
        self.pins: list[Pin] = []
        self.queries = self.hits = 0
        self.used: dict[int, int] = {}  # block -> when a sequence last let go of it
        self.num_releases = 0
        tree = self.cache.tree
        self.evict, self.tree_release = tree.evict, tree.release
        tree.evict = self.checked_evict  # type: ignore[method-assign]
        tree.release = self.noted_release  # type: ignore[method-assign]

    def noted_release(self, blocks: list[int]) -> None:
        self.num_releases += 1
        self.used.update(dict.fromkeys(blocks, self.num_releases))
        self.tree_release(blocks)

    def checked_evict(self) -> bool:
        """The oldest leaf goes that nobody uses and no pin keeps, and goes if there is one."""
        pool = self.cache.pool
        leaves = {
            node.block: node
            for node in self.cache.tree._nodes.values()
            if not node.children and pool.refs[node.block] == pool.pins[node.block] == 0
        }
        before = set(self.cache.tree._nodes)
        done = self.evict()
        gone = before.difference(self.cache.tree._nodes)
        assert len(gone) == done == bool(leaves)
        for block in gone:
            assert block in leaves
            assert self.used[block] == min(self.used[leaf] for leaf in leaves)
        return done

    def draw_live(self, data: st.DataObject) -> Sequence:
        return self.live[data.draw(st.integers(0, len(self.live) - 1))]

    def known(self, namespace: int) -> Iterator[list[int]]:
        """The tokens of every path of the tree."""
        root = self.cache.tree._roots.get(namespace)
        stack: list[tuple[Node, list[int]]] = [] if root is None else [(root, [])]
        while stack:
            node, tokens = stack.pop()
            yield tokens
            stack += [(child, [*tokens, *child.tokens]) for child in node.children.values()]

    def longest(self, tokens: list[int], limit: int, namespace: int) -> int:
        """The slow, obvious match."""
        best = 0
        for known in self.known(namespace):
            num = 0
            while num < min(limit, len(known)) and known[num] == tokens[num]:
                num += 1
            best = max(best, num)
        return best

    @precondition(lambda self: len(self.live) < 4)
    @rule(
        tokens=TOKENS,
        namespace=st.sampled_from([0, 0, 0, 7]),
        spare=st.integers(0, 2),
        life=st.sampled_from(["whole", "compute", "admit"]),
    )
    def admit(self, tokens: list[int], namespace: int, spare: int, life: str) -> None:
        cache = self.cache
        alone = not self.live
        seq = Sequence(0, tokens, SamplingParams(), tenant=Tenant(namespace=namespace))
        longest = self.longest(tokens, len(tokens) - 1, namespace)
        match = cache.tree.match(tokens, len(tokens) - 1, namespace)
        assert len(match.nodes) * self.size + match.num_partial == longest
        before = cache.counts()
        num_needed = cache.num_blocks_for(len(tokens))
        if not cache.admit(seq, spare=0 if alone else spare, alone=alone):
            assert not alone or num_needed > before.total, "a sequence alone must fit"
            assert seq.blocks == []
            assert cache.counts().held == before.held
            assert cache.take_moves()["copies"] == []
            return
        assert len(seq.blocks) == num_needed
        # All that is known is used, but for a copy there is no room for.
        after = cache.counts()
        room = after.free + after.cached + (after.pinned if alone else 0)
        assert seq.num_computed == longest or (
            seq.num_computed == len(match.nodes) * self.size and room <= (0 if alone else spare)
        )
        self.move()
        self.live.append(seq)
        self.queries += len(tokens)
        self.hits += seq.num_computed
        assert (cache.prefix_queries, cache.prefix_hits) == (self.queries, self.hits)
        if life != "admit":
            self.run(seq, seq.num_behind)
        if life == "whole":
            self.release(seq)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), num_tokens=st.sampled_from([20, 1, 2, 3]))
    def compute(self, data: st.DataObject, num_tokens: int) -> None:
        seq = self.draw_live(data)
        num_tokens = min(num_tokens, seq.num_behind)
        if num_tokens and seq.num_computed + num_tokens <= len(seq.blocks) * self.size:
            self.run(seq, num_tokens)

    def move(self) -> None:
        plan = StepPlan([], **self.cache.take_moves())
        self.memory.scrub(plan.scrubs)
        self.memory.copy(plan.copies)
        self.cache.end_step(plan)

    def run(self, seq: Sequence, num_tokens: int) -> None:
        """A chunk or a decode: reads all that is computed, writes the rest."""
        kv = chain(seq.tokens[: seq.num_computed + num_tokens])
        assert self.memory.read(seq.blocks, seq.num_computed) == kv[: seq.num_computed]
        self.memory.write(seq.blocks, seq.num_computed, kv[seq.num_computed :])
        self.cache.commit(seq, num_tokens)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), tokens=TOKENS)
    def extend(self, data: st.DataObject, tokens: list[int]) -> None:
        seq = self.draw_live(data)
        seq.tokens += tokens[:3]
        idle = self.cache.counts().free + self.cache.counts().cached
        missing = self.cache.num_blocks_for(len(seq.tokens)) - len(seq.blocks)
        alone = len(self.live) == 1
        if alone:
            idle += self.cache.counts().pinned
        if self.cache.grow(seq, len(seq.tokens), alone=alone):
            self.move()
        else:
            # Only blocks above those in use may be cached and yet not evictable.
            assert missing > idle or not alone

    @precondition(lambda self: self.live)
    @rule(data=st.data(), spare=st.integers(0, 2))
    def share_tail(self, data: st.DataObject, spare: int) -> None:
        """A running sequence lets others have the block that it fills; it goes on in a copy."""
        seq, cache = self.draw_live(data), self.cache
        before, blocks = cache.counts(), list(seq.blocks)
        tokens = seq.tokens[: seq.num_computed]
        idle = before.free + before.cached
        cache.share_tail(seq, spare=spare)
        assert cache.counts().held - before.held == len(cache._copies) <= max(0, idle - spare)
        if seq.blocks != blocks:
            assert self.longest(tokens, len(tokens), seq.tenant.namespace) == len(tokens)
        self.move()

    @precondition(lambda self: self.live)
    @rule(data=st.data(), failed=st.sampled_from([False, False, True]))
    def let_go(self, data: st.DataObject, failed: bool) -> None:
        seq = self.draw_live(data)
        if failed:
            tokens = seq.tokens[: seq.num_computed]
            blocks = seq.blocks
            self.live.remove(seq)
            for block in blocks[len(tokens) // self.size :]:
                self.memory.blocks[block] = [POISON] * self.size  # of the row that failed
            self.cache.forget(seq)
            suspect = self.cache.pool.suspect
            assert suspect.issuperset(blocks)
            assert suspect.isdisjoint(self.cache.tree._nodes)
        else:
            self.release(seq)

    def release(self, seq: Sequence) -> None:
        tokens = seq.tokens[: seq.num_computed]
        self.live.remove(seq)
        suspect = [at for at, b in enumerate(seq.blocks) if b in self.cache.pool.suspect]
        offered = min(len(tokens), suspect[0] * self.size) if suspect else len(tokens)
        self.cache.release(seq)
        assert self.longest(tokens, len(tokens), seq.tenant.namespace) >= offered

    @rule(tokens=TOKENS, what=st.sampled_from(["pin", "unpin", "clear"]))
    def care(self, tokens: list[int], what: str) -> None:
        match what:
            case "pin":
                self.pins.append(self.cache.pin(tokens[:5]))
            case "unpin" if self.pins:
                self.cache.unpin(self.pins.pop(0))
            case "clear":
                self.cache.clear()
                assert self.live or self.cache.counts().cached == 0

    @invariant()
    def adds_up(self) -> None:
        self.cache.check()
        used = {block for seq in self.live for block in seq.blocks}
        assert self.cache.counts().held == len(used)

    @invariant()
    def what_failed_reaches_nobody(self) -> None:
        assert not any(self.memory.poisoned(seq.blocks) for seq in self.live)

    @invariant()
    def every_sequence_reads_its_own_history(self) -> None:
        for seq in self.live:
            computed = seq.tokens[: seq.num_computed]
            assert self.memory.read(seq.blocks, seq.num_computed) == chain(computed)

    @invariant()
    def every_node_holds_what_it_says(self) -> None:
        for namespace in (0, 7):
            root = self.cache.tree._roots.get(namespace)
            stack = [(child, 0) for child in root.children.values()] if root else []
            while stack:
                node, before = stack.pop()
                kv = chain(node.tokens, before)
                assert self.memory.blocks[node.block][: len(kv)] == kv
                stack += [(child, kv[-1]) for child in node.children.values()]

    def teardown(self) -> None:
        if not hasattr(self, "cache"):
            return
        for seq in self.live:
            self.cache.release(seq)
        for pin in self.pins:
            self.cache.unpin(pin)
        self.cache.clear()
        self.cache.check()
        assert self.cache.counts().free == self.cache.pool.num_blocks


def test_blocks_tree_and_memory_agree() -> None:
    run_state_machine_as_test(
        CacheMachine, settings=settings(max_examples=60, stateful_step_count=35, deadline=None)
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_blocks_tree_and_memory_agree_for_long() -> None:
    run_state_machine_as_test(
        CacheMachine,
        settings=settings(
            max_examples=3000,
            stateful_step_count=60,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
