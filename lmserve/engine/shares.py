"""Who had how much of the engine, so that tenants share it by their weights.

Each tenant has a counter of the tokens run for it, and once more those drawn, over its weight
(the virtual token counter of "Fairness in Serving Large Language Models"). `level` is where the
counter of one stands that has its share and no more. Counters are kept near it, so that neither
what was saved up nor what was taken while nobody else came counts for long: whoever comes, or
comes back, is at most `burst` of its own tokens below. Of a tenant alone nothing but the level is
counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

from lmserve.engine.plan import Row
from lmserve.engine.sequence import Sequence
from lmserve.messages import Tenant

BURST_STEPS = 8  # full steps that one who comes may have before it ranks like the others
MARGIN_STEPS = 2  # full steps that make a clear difference
_MOST_IDLE = 64  # counters of idle tenants kept before it is looked which of them matter


@dataclass(slots=True, eq=False)
class Share:
    """One tenant's."""

    weight: float = 1.0
    served: float = 0.0
    num_requests: int = 0  # waiting or running


class Shares:
    """Owned by the scheduler. Not `fair`: all are one tenant. Drafts are nobody's."""

    def __init__(self, max_step_tokens: int, *, fair: bool = True):
        self._fair = fair
        self.burst = BURST_STEPS * max_step_tokens
        self.margin = MARGIN_STEPS * max_step_tokens
        self.level = 0.0
        self._shares: dict[str, Share] = {}
        self._active: list[Share] = []  # those with requests
        self._of_drafts = Share()

    @property
    def is_shared(self) -> bool:
        return len(self._active) > 1

    def enter(self, seq: Sequence) -> None:
        """A request came."""
        if seq.is_draft:
            seq.share = self._of_drafts
        else:
            seq.share = self._share_of(seq.tenant)
            seq.share.num_requests += 1

    def leave(self, seq: Sequence) -> None:
        if seq.is_draft:
            return
        share = seq.share
        share.num_requests -= 1
        if not share.num_requests:
            self._active.remove(share)
            if not self._active:  # nobody is left to compare with
                self._shares.clear()
                self.level = 0.0

    def _share_of(self, tenant: Tenant) -> Share:
        name = tenant.name if self._fair else ""
        share = self._shares.get(name)
        if share is None:
            if len(self._shares) > 2 * len(self._active) + _MOST_IDLE:
                self._forget()
            # one that comes first has nobody to be behind
            share = self._shares[name] = Share(served=-inf if self._active else self.level)
        share.weight = tenant.weight
        if not share.num_requests:
            self._active.append(share)
            share.served = max(share.served, self._least(share))
        return share

    def _least(self, share: Share) -> float:
        return self.level - self.burst / share.weight

    def _forget(self) -> None:
        """Those who would come back as if they came for the first time."""
        self._shares = {
            name: share
            for name, share in self._shares.items()
            if share.num_requests or share.served > self._least(share)
        }

    def had_too_little(self, share: Share) -> bool:
        """Clearly less than its share."""
        return share.served < self.level - self.margin / share.weight

    def had_more(self, share: Share, other: Share) -> bool:
        """Clearly more than another."""
        return share.served > other.served + self.margin / other.weight

    # --- a step is planned --------------------------------------------------------------

    def charge(self, rows: Iterable[tuple[Sequence, Row]]) -> None:
        """It will run these rows."""
        if len(self._active) == 1:
            (share,) = self._active
            self.level += sum(_cost(row) for _, row in rows) / share.weight
            share.served = self.level
            return
        total = 0
        for seq, row in rows:
            if not seq.is_draft:
                cost = _cost(row)
                seq.share.served += cost / seq.share.weight
                total += cost
        if total:
            self.level += total / sum(share.weight for share in self._active)
            level, burst = self.level, self.burst
            for share in self._active:  # there may be a thousand
                away = burst / share.weight
                if not level - away <= share.served <= level + away:
                    share.served = level - away if share.served < level else level + away


def _cost(row: Row) -> int:
    return len(row.token_ids) + (row.sampling is not None)
