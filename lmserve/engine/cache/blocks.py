"""Who owns each KV block. Plain ints and counters: no torch, no tokens.

    free     nobody's                                   the free list
    cached   in the prefix tree, no sequence uses it    may be evicted
    pinned   the same, and a pin keeps it               evicted only as a last resort
    held     one sequence or more use it, or a loan     in the tree or not

free + cached + pinned + held = total, always. A block in the tree is never written again; a
block outside it has exactly one holder, the sequence (or the restore) that writes it.

A suspect block is one whose KV a failed sequence had to do with. It left the tree for good;
those that shared it keep it until they end, and whoever gets it next has to zero it first. So
is a block that a restore writes, until the whole file is verified.
"""

from __future__ import annotations

from typing import NamedTuple


class IntegrityError(Exception):
    """The pool or the tree contradicts itself: a bug of ours."""


class BlockCounts(NamedTuple):
    free: int
    cached: int
    pinned: int
    held: int
    total: int


class BlockPool:
    """`num_blocks` blocks, counted. Callers ask for blocks and say when they are done."""

    __slots__ = ("_free", "in_tree", "num_blocks", "num_cached", "num_held", "num_kept",
                 "num_pinned", "pins", "refs", "suspect")  # fmt: skip

    def __init__(self, num_blocks: int):
        self.num_blocks = num_blocks
        self.refs = [0] * num_blocks  # sequences that use the block
        self.pins = [0] * num_blocks  # pins on the tree node that owns the block
        self.in_tree = [False] * num_blocks
        self.suspect: set[int] = set()  # until zeroed
        self._free = list(range(num_blocks - 1, -1, -1))  # a stack: low numbers first
        self.num_cached = 0
        self.num_pinned = 0
        self.num_held = 0
        self.num_kept = 0  # those that a pin keeps, in use or not

    @property
    def num_free(self) -> int:
        return len(self._free)

    def counts(self) -> BlockCounts:
        return BlockCounts(
            self.num_free, self.num_cached, self.num_pinned, self.num_held, self.num_blocks
        )

    # --- sequences ------------------------------------------------------------------------

    def allocate(self) -> int | None:
        """A free block, held once, to write into; None when there is none."""
        if not self._free:
            return None
        block = self._free.pop()
        self.refs[block] = 1
        self.num_held += 1
        return block

    def acquire(self, block: int) -> None:
        """One more sequence reads a block of the tree."""
        if self.refs[block] == 0:
            self._count_idle(block, -1)
            self.num_held += 1
        self.refs[block] += 1

    def release(self, block: int) -> None:
        """The inverse of `allocate` and `acquire`."""
        self.refs[block] -= 1
        if self.refs[block] == 0:
            self.num_held -= 1
            if self.in_tree[block]:
                self._count_idle(block, 1)
            else:
                self._free.append(block)

    # --- the prefix tree ------------------------------------------------------------------

    def keep(self, block: int) -> None:
        """A held block becomes a node of the tree."""
        self.in_tree[block] = True

    def drop(self, block: int) -> None:
        """The block's node is gone; its pins with it."""
        if self.refs[block] == 0:
            self._count_idle(block, -1)
            self._free.append(block)
        self.in_tree[block] = False
        self.num_kept -= self.pins[block] > 0
        self.pins[block] = 0

    def pin(self, block: int) -> None:
        if self.refs[block] == 0 and self.pins[block] == 0:
            self.num_cached -= 1
            self.num_pinned += 1
        self.num_kept += self.pins[block] == 0
        self.pins[block] += 1

    def unpin(self, block: int) -> None:
        self.pins[block] -= 1
        self.num_kept -= self.pins[block] == 0
        if self.refs[block] == 0 and self.pins[block] == 0:
            self.num_cached += 1
            self.num_pinned -= 1

    def idle(self, block: int) -> bool:
        """No sequence uses it and no pin keeps it."""
        return self.refs[block] == 0 and self.pins[block] == 0

    def _count_idle(self, block: int, change: int) -> None:
        if self.pins[block]:
            self.num_pinned += change
        else:
            self.num_cached += change

    # --- integrity ------------------------------------------------------------------------

    def check(self) -> None:
        """Counts everything again. Raises IntegrityError."""
        free = set(self._free)
        if len(free) != len(self._free):
            raise IntegrityError("a block is on the free list twice")
        held = cached = pinned = 0
        for block in range(self.num_blocks):
            refs, pins, in_tree = self.refs[block], self.pins[block], self.in_tree[block]
            if refs < 0 or pins < 0:
                raise IntegrityError(f"block {block}: {refs} references, {pins} pins")
            if (block in free) != (refs == 0 and not in_tree):
                raise IntegrityError(f"block {block}: free list and owners disagree")
            suspect = block in self.suspect
            if in_tree and suspect:
                raise IntegrityError(f"block {block} is suspect and still in the tree")
            if not in_tree and (pins or (refs > 1 and not suspect)):
                raise IntegrityError(f"block {block} is shared or pinned outside the tree")
            if refs:
                held += 1
            elif in_tree and pins:
                pinned += 1
            elif in_tree:
                cached += 1
        counted = BlockCounts(len(free), cached, pinned, held, self.num_blocks)
        if counted != self.counts() or sum(counted[:4]) != self.num_blocks:
            raise IntegrityError(f"blocks counted {counted}, kept {self.counts()}")
        if self.num_kept != sum(pins > 0 for pins in self.pins):
            raise IntegrityError(f"{self.num_kept} blocks are said to be kept by pins")
