"""Prompts that begin alike and come together: the first computes, the others wait for it.

A leader is a running sequence that is computing the very block that a waiting one needs next.
The waiting one is put aside until the leader has computed all that they share, or runs no more;
then it finds that in the prefix tree. It waits only for one that is more urgent, or came before
it, and nobody waits in a circle.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from lmserve.engine.cache.manager import CacheManager
from lmserve.engine.cache.prefix import Node, Tokens
from lmserve.engine.policy import priority_then_arrival
from lmserve.engine.sequence import Sequence, State

Key = tuple[int, Node | None, Tokens]  # a block: its namespace, what it follows, its tokens


class InFlight:
    def __init__(self, cache: CacheManager):
        self._cache = cache
        self._leaders: dict[Key, Sequence] = {}  # by the block that each computes in this step
        # Those put aside, by their leader and the number of its tokens that they wait for.
        self._aside: defaultdict[tuple[Sequence, int], list[Sequence]] = defaultdict(list)

    @property
    def leaders(self) -> list[Sequence]:
        """Those that somebody waits for."""
        return [leader for leader, _ in self._aside]

    def take_ready(self, *, spare: int) -> list[Sequence]:
        """Those that need wait no longer, before the step's rows are planned. Where a leader's
        prompt ends within a block, it shares that too, leaving `spare` blocks to others."""
        ready: list[Sequence] = []
        for leader, num_tokens in list(self._aside):
            running = leader.state is State.RUNNING
            if running and leader.num_computed < num_tokens:
                continue
            if running and leader.num_computed == num_tokens:
                self._cache.share_tail(leader, spare=spare)
            ready += self._aside.pop((leader, num_tokens))
        return ready

    # --- in one step ----------------------------------------------------------------------

    def begin_step(self, running: Iterable[Sequence]) -> None:
        self._leaders = {}
        for seq in running:
            self.add(seq)

    def add(self, seq: Sequence) -> None:
        """A running sequence leads, where it knows all tokens of the block it computes."""
        size = self._cache.block_size
        at = seq.num_computed // size
        if len(seq.tokens) < (at + 1) * size or not self._cache.prefix_cache:
            return
        if at and seq.node is None:  # a failed one had to do with its blocks: it shares none
            return
        key = self._key(seq, at, seq.node)
        other = self._leaders.get(key)
        if other is None or priority_then_arrival(seq) < priority_then_arrival(other):
            self._leaders[key] = seq

    def put_aside(self, seq: Sequence) -> bool:
        """Whether a waiting sequence has to wait for a leader. It is among those that
        `take_ready` gives back then, even where it has ended meanwhile."""
        if not self._leaders:
            return False
        size, limit = self._cache.block_size, seq.num_matchable
        nodes = self._cache.match(seq).nodes
        num_common = (len(nodes) + 1) * size
        if num_common > limit:
            return False
        leader = self._leaders.get(self._key(seq, len(nodes), nodes[-1] if nodes else None))
        if leader is None or priority_then_arrival(seq) < priority_then_arrival(leader):
            return False
        ours, theirs = seq.tokens, leader.tokens
        end = min(limit, len(theirs))
        while num_common < end and ours[num_common] == theirs[num_common]:
            num_common += 1
        # to the end of the block where they part
        num_tokens = min(self._cache.num_blocks_for(num_common) * size, len(theirs))
        self._aside[leader, num_tokens].append(seq)
        return True

    def _key(self, seq: Sequence, at: int, parent: Node | None) -> Key:
        size = self._cache.block_size
        return seq.tenant.namespace, parent, tuple(seq.tokens[at * size : (at + 1) * size])
