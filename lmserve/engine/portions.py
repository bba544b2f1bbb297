"""How much of a step each may have, and who gives back what another tenant has too little of.

A prompt of a tenant that had clearly less than its share is favoured: beside it, each tenant that
had more gets one part in so many of the step. The step is short then, and most of it the
prompt's. Decodes take turns: none is left out of more than `PORTION - 1` steps in a row, for no
more run than a step has tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator

from lmserve.engine.policy import fair_order
from lmserve.engine.sequence import Sequence
from lmserve.engine.shares import Share, Shares

PORTION = 16


class Portions:
    """Owned by the scheduler."""

    def __init__(self, shares: Shares):
        self._shares = shares
        self.favoured: Sequence | None = None  # in the step that is planned
        self._most = 0  # tokens of each of those that had more
        self._taken: Counter[Share] = Counter()
        self._left_out: Counter[int] = Counter()  # of how many steps in a row a decode was, by rid

    def begin_step(self, prompts: Callable[[], Iterable[Sequence]], max_step_tokens: int) -> None:
        """`prompts`: those that may get a part of it; the first of them is favoured, or none."""
        shares, first = self._shares, None
        if shares.is_shared:
            first = min(prompts(), key=fair_order, default=None)
            if first is not None and not shares.had_too_little(first.share):
                first = None
        if first is not None:
            self._most = -(-max_step_tokens // PORTION)
            self._taken.clear()
        self.favoured = first

    def room(self, seq: Sequence, budget: int) -> int:
        """Tokens that a sequence may have of the `budget` that is left."""
        if not self._is_limited(seq):
            return budget
        return min(budget, self._most - self._taken[seq.share])

    def take(self, seq: Sequence, num_tokens: int) -> None:
        if self._is_limited(seq):
            self._taken[seq.share] += num_tokens

    def take_turns(self, decodes: list[Sequence]) -> Iterator[Sequence]:
        """Those that have their turn, one by one: each is to be asked for or planned before the
        next."""
        before, self._left_out = self._left_out, Counter()  # nobody's who is gone
        if self.favoured is None:
            yield from decodes
            return
        for seq in sorted(decodes, key=lambda seq: -before[seq.rid]):
            if self.room(seq, 1):
                yield seq
            else:
                self._left_out[seq.rid] = before[seq.rid] + 1

    def _is_limited(self, seq: Sequence) -> bool:
        first = self.favoured
        return (
            first is not None
            and seq.priority >= first.priority
            and self._shares.had_more(seq.share, first.share)
        )


def one_to_spare(
    seq: Sequence, running: Collection[Sequence], needed: int, size: Callable[[Sequence], int]
) -> Sequence | None:
    """Who gives way to `seq`, which needs so much of something: the last in order of a tenant
    that has more of it even then. So nobody has to give way to and fro."""
    has: Counter[Share] = Counter()
    for each in running:
        has[each.share] += size(each)
    will_have = (has[seq.share] + needed) / seq.share.weight

    def can_spare(each: Sequence) -> bool:
        share = each.share
        return (
            share is not seq.share
            and fair_order(each) > fair_order(seq)
            and (has[share] - size(each)) / share.weight >= will_have
        )

    return max(filter(can_spare, running), key=fair_order, default=None)
