"""The KV cache as the scheduler sees it: admit, grow, commit, release."""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from typing import TypedDict

from lmserve.engine.cache.blocks import BlockCounts, BlockPool
from lmserve.engine.cache.loans import Loans
from lmserve.engine.cache.prefix import Match, Node, Pin, PrefixTree
from lmserve.engine.plan import BlockCopy, Row, StepPlan
from lmserve.engine.sequence import Sequence


class Moves(TypedDict):
    """What a plan does to whole blocks."""

    copies: list[BlockCopy]
    scrubs: list[int]
    sources: list[int]


class CacheManager:
    """Owns the pool and the tree, and the block tables of running sequences.

    A sequence holds every block of its table. Its full blocks enter the tree as soon as they
    are computed, so that others share them while it runs; the rest enters when it lets go.
    Where two sequences computed the same block, each keeps its own (tables only ever grow) and
    the tree knows one of them.
    """

    def __init__(self, num_blocks: int, block_size: int, *, prefix_cache: bool = True):
        self.block_size = block_size
        self.prefix_cache = prefix_cache
        self.pool = BlockPool(num_blocks)
        self.tree = PrefixTree(self.pool, block_size)
        self.loans = Loans(self.pool, self.tree)
        self.prefix_queries = 0  # prompt tokens looked up
        self.prefix_hits = 0  # prompt tokens found
        self._copies: list[BlockCopy] = []
        self._scrubs: list[int] = []  # suspect blocks given out in this step
        # Sources of the copies, held until the step's commit: no other row may write them, so
        # that a step that failed halfway can be run again.
        self._sources: list[int] = []
        self.num_sources_held = 0  # by launched steps
        # Copies of launched steps, by target: not to be found before they are made, for what is
        # left of a step that failed is run again without those of sequences that ended meanwhile.
        self._unmade: dict[int, BlockCopy] = {}

    def num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    # --- planning -------------------------------------------------------------------------

    def admit(self, seq: Sequence, *, spare: int = 0, alone: bool = False) -> bool:
        """Gives a sequence blocks for all its tokens, as many as possible from the tree.

        Leaves `spare` blocks to others; says False, having changed nothing, when that cannot
        be. For a sequence that runs `alone` even pins are broken and loans called in: it succeeds
        if the pool is large enough.
        """
        return self._admit(seq, spare, alone) or (
            alone and self.loans.call_in() and self._admit(seq, spare, alone)
        )

    def _admit(self, seq: Sequence, spare: int, alone: bool) -> bool:
        match = self.match(seq)
        pool = self.pool

        def cost(node: Node) -> int:
            """1 where holding the node's block takes it from the room, 0 where it is not there."""
            return pool.refs[node.block] == 0 and (alone or not pool.pins[node.block])

        num_new = self.num_blocks_for(len(seq.tokens)) - len(match.nodes)
        room = pool.num_free + pool.num_cached + (pool.num_pinned if alone else 0)
        room -= num_new + sum(map(cost, match.nodes)) + spare
        if room < 0:
            return False
        source = match.partial
        if source is not None and cost(source) > room:
            source = None
        held = [node.block for node in match.nodes]
        for block in held:
            pool.acquire(block)
        if source is not None:
            pool.acquire(source.block)
        new = self._take(num_new, break_pins=alone)
        if new is None:
            self.tree.release(held if source is None else [*held, source.block])
            return False
        seq.blocks = held + new
        seq.num_shared = len(held)
        seq.node = match.nodes[-1] if match.nodes else None
        seq.num_computed = len(held) * self.block_size
        if source is not None:
            self._copies.append(BlockCopy(source.block, new[0], match.num_partial))
            self._sources.append(source.block)
            seq.num_computed += match.num_partial
        if seq.num_cached is None:
            seq.num_cached = seq.num_computed
            self.prefix_queries += seq.num_prompt_tokens
            self.prefix_hits += seq.num_cached
        return True

    def grow(self, seq: Sequence, num_tokens: int, *, alone: bool = False) -> bool:
        """Makes the block table cover `num_tokens`. Says False when there is no block."""
        num_new = self.num_blocks_for(num_tokens) - len(seq.blocks)
        new = self._take(num_new, break_pins=alone)
        if new is None and alone and self.loans.call_in():
            new = self._take(num_new, break_pins=alone)
        if new is None:
            return False
        seq.blocks.extend(new)
        return True

    def share_tail(self, seq: Sequence, *, spare: int) -> None:
        """Enters the block that a running sequence fills into the tree, as far as it is computed;
        the sequence goes on in a copy. Does nothing where that leaves `spare` blocks no more.
        For the beginning of a step, before its rows are planned."""
        pool, at = self.pool, seq.num_computed // self.block_size
        tokens = seq.tokens[at * self.block_size : seq.num_computed]
        num_slots = min(self.block_size, len(tokens) + seq.num_launched)  # that are its own
        if not tokens or pool.num_free + pool.num_cached <= spare:
            return
        tail, new = seq.blocks[at], self._take(1)
        if new is None:
            return
        if seq.node is not None and seq.node.alive and tail not in pool.suspect:
            if self.tree.insert(seq.node, tuple(tokens), tail).block == tail:
                self._copies.append(BlockCopy(tail, new[0], num_slots))
                self._sources.append(tail)  # the sequence's hold on it
                seq.blocks = [*seq.blocks[:at], *new, *seq.blocks[at + 1 :]]
                return
        self.tree.release(new)

    def take_moves(self) -> Moves:
        """What this step's plan has to do to blocks. Of the suspect ones, those given out and taken
        back while it was made are not zeroed: they stay suspect."""
        scrubs = [block for block in self._scrubs if self.pool.refs[block]]
        moves = Moves(copies=self._copies, scrubs=scrubs, sources=self._sources)
        self.num_sources_held += len(self._sources)
        self._unmade.update((copy.target, copy) for copy in self._copies)
        self._copies, self._scrubs, self._sources = [], [], []
        return moves

    def match(self, seq: Sequence) -> Match:
        """What is known of a sequence that is not admitted yet."""
        if not self.prefix_cache:
            return Match([])
        return self.tree.match(seq.tokens, seq.num_matchable, seq.tenant.namespace)

    def _take(self, num: int, *, break_pins: bool = False) -> list[int] | None:
        """`num` new blocks, evicting what nobody uses; None when that is not enough."""
        tree, pool = self.tree, self.pool
        new: list[int] = []
        while len(new) < num:
            block = pool.allocate()
            if block is not None:
                new.append(block)
                if block in pool.suspect:
                    self._scrubs.append(block)
            elif not (tree.evict() or (break_pins and tree.evict_pinned())):
                tree.release(new)
                return None
        return new

    # --- after the step -------------------------------------------------------------------

    def end_step(self, plan: StepPlan) -> None:
        """It has run: its copies are made, its suspect blocks zeroed. Where a row failed before
        that, `forget` makes them suspect again."""
        self.pool.suspect.difference_update(plan.scrubs)
        for copy in plan.copies:
            if self._unmade.get(copy.target) is copy:
                del self._unmade[copy.target]
        if plan.sources:
            self.num_sources_held -= len(plan.sources)
            self.tree.release(plan.sources)

    def commit(self, seq: Sequence, num_tokens: int) -> None:
        """The KV of `num_tokens` more tokens is computed."""
        seq.num_computed += num_tokens
        if seq.num_computed >= (seq.num_shared + 1) * self.block_size:
            self._share(seq)

    def release(self, seq: Sequence) -> None:
        """Takes the blocks away; what they hold stays in the tree until it is evicted."""
        self._share(seq, tail=True)
        self.tree.release(seq.blocks)
        if self._copies:  # into one of them, planned in this very step
            self._copies = [copy for copy in self._copies if self.pool.refs[copy.target]]
        _clear(seq)

    def forget(self, seq: Sequence) -> None:
        """Takes the blocks away after a failure: nobody finds what they hold again."""
        self.tree.forget(seq.blocks)
        _clear(seq)

    def spoil(self, row: Row) -> None:
        """What was written for a row is bad, and its blocks are no longer its sequence's."""
        self.tree.spoil(list(row.blocks[row.start // self.block_size :]))

    def _share(self, seq: Sequence, *, tail: bool = False) -> None:
        """Enters the computed blocks into the tree: the full ones, with `tail` the last too."""
        if not self.prefix_cache:
            return
        size, tree, node, at = self.block_size, self.tree, seq.node, seq.num_shared
        if node is None or not node.alive:
            # The node stood for a block that the sequence has a copy of, and was evicted; or
            # the block is suspect now.
            node, at = None, 0
        end = self.num_blocks_for(seq.num_computed) if tail else seq.num_computed // size
        for index in range(at, end):
            if seq.blocks[index] in self.pool.suspect:
                node = None  # nothing that follows it is offered either
                break
            if seq.blocks[index] in self._unmade:
                end = index  # from there on later, if it is still running then
                break
            tokens = seq.tokens[index * size : min((index + 1) * size, seq.num_computed)]
            parent = node or tree.root(seq.tenant.namespace)
            node = tree.insert(parent, tuple(tokens), seq.blocks[index])
        seq.node, seq.num_shared = node, end

    # --- pins and care --------------------------------------------------------------------

    def pin(self, tokens: Tokens[int], namespace: int = 0) -> Pin:
        return self.tree.pin(tokens, namespace)

    def unpin(self, pin: Pin) -> None:
        self.tree.unpin(pin)

    def clear(self) -> int:
        """Evicts everything that no sequence uses and no pin keeps."""
        return self.tree.clear()

    def counts(self) -> BlockCounts:
        return self.pool.counts()

    def check(self) -> None:
        """Raises IntegrityError when pool and tree contradict themselves or each other."""
        self.pool.check()
        self.tree.check()


def _clear(seq: Sequence) -> None:
    seq.blocks = []  # a new list: rows of the last plan may still refer to the old one
    seq.num_computed = seq.num_shared = 0
    seq.node = None
