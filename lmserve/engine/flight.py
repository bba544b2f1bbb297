"""A row between its launch and its commit."""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from lmserve.engine.plan import Row
from lmserve.engine.sequence import Sequence, State


@dataclass(frozen=True, slots=True)
class Flight:
    row: Row
    seq: Sequence
    num_lost: int  # of the sequence, when it was launched

    @property
    def is_wanted(self) -> bool:
        """Not where the sequence has ended meanwhile, or lost its blocks: then all of it is run
        again, and comes to the same."""
        return self.seq.state is not State.FINISHED and self.seq.num_lost == self.num_lost

    def row_now(self) -> Row:
        """As it would have been planned, had the step before been read by then."""
        row, seq = self.row, self.seq
        if not row.is_unread or not self.is_wanted:
            return row
        return replace(
            row,
            token_ids=seq.tokens[row.start : row.context_len],
            banned_ids=seq.bans(row.context_len),
            forced=seq.reasoning.forced(seq.tokens) if row.sampling and seq.reasoning else None,
        )
