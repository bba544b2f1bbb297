"""Blocks that a save or a restore holds for a while, between the steps.

A loan is in nobody's way for long: when a sequence that has the engine to itself lacks a block,
all loans are called in, and whoever had one finds it `called_in`. No torch here.
"""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field

from lmserve.engine.cache.blocks import BlockPool
from lmserve.engine.cache.prefix import PrefixTree


@dataclass(slots=True, eq=False)
class Loan:
    """Held blocks, in order. The first `num_tokens` tokens are known; the `new` blocks, which
    follow the known full ones, are to be written by whoever has the loan."""

    blocks: list[int]
    num_tokens: int
    new: list[int] = field(default_factory=list)
    called_in: bool = False


class Loans:
    def __init__(self, pool: BlockPool, tree: PrefixTree):
        self._pool = pool
        self._tree = tree
        self._open: list[Loan] = []

    def num_known(self, tokens: Tokens[int], namespace: int = 0) -> int:
        match = self._tree.match(tokens, len(tokens), namespace)
        return len(match.nodes) * self._tree.block_size + match.num_partial

    def borrow(self, tokens: Tokens[int], *, full_only: bool = False, namespace: int = 0) -> Loan:
        """Holds the blocks of what is known of `tokens`, of whole blocks with `full_only`."""
        match = self._tree.match(tokens, len(tokens), namespace)
        nodes = match.nodes if full_only else match.all_nodes
        for node in nodes:
            self._pool.acquire(node.block)
        num_tokens = len(match.nodes) * self._tree.block_size
        loan = Loan(
            [node.block for node in nodes], num_tokens + (0 if full_only else match.num_partial)
        )
        self._open.append(loan)
        return loan

    def extend(self, loan: Loan, num_blocks: int, spare: int) -> list[int]:
        """Up to `num_blocks` more to write, evicting only what nobody uses and no pin keeps, and
        leaving `spare` to others. They are suspect until entered."""
        pool = self._pool
        new: list[int] = []
        while len(new) < num_blocks and pool.num_free + pool.num_cached > spare:
            block = pool.allocate()
            if block is not None:
                new.append(block)
            elif not self._tree.evict():
                break
        pool.suspect.update(new)
        loan.new += new
        loan.blocks += new
        return new

    def enter(self, loan: Loan, tokens: Tokens[int], namespace: int = 0) -> None:
        """The new blocks hold the KV of `tokens` to their end: they become known."""
        pool, tree, size = self._pool, self._tree, self._tree.block_size
        pool.suspect.difference_update(loan.new)
        node = None
        starts = range(0, len(tokens), size)
        for start, block in zip(starts, loan.blocks, strict=False):
            if block in pool.suspect:  # a failed sequence had to do with it meanwhile
                break
            parent = node or tree.root(namespace)
            node = tree.insert(parent, tuple(tokens[start : start + size]), block)

    def is_suspect(self, loan: Loan) -> bool:
        """Whether a failed sequence had to do with what is borrowed."""
        return not self._pool.suspect.isdisjoint(loan.blocks)

    def give_back(self, loan: Loan) -> None:
        """Ends a loan. Idempotent."""
        if loan in self._open:
            self._open.remove(loan)
            # what was only saved is not needed any sooner for that
            self._tree.release(loan.blocks, used=bool(loan.new))
            loan.blocks, loan.new = [], []

    def call_in(self) -> bool:
        """Ends all loans; says whether there was one."""
        called = list(self._open)
        for loan in called:
            loan.called_in = True
            self.give_back(loan)
        return bool(called)
