"""Speculative decoding: tokens that may come next are run in the same step as the last one.

A row then has several places where a token is drawn, each with the very settings and the very
uniform number that it would have by itself. What was proposed is kept as far as it is what was
drawn, so an answer is the same token for token; the rest is computed in vain. Hence the measure:
a token is proposed where the chance that it comes is worth what it costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Tokens
from contextlib import contextmanager
from math import log
from time import perf_counter
from typing import Protocol

from lmserve.engine.plan import Row, StepPlan
from lmserve.engine.sequence import Sequence
from lmserve.engine.speculation.costs import StepCosts
from lmserve.engine.speculation.lookup import PromptLookup, Proposer

MARGIN = 1.25  # costs and chances are estimates: a proposal is to be worth so many times its cost
MEMORY = 0.94  # weight of what was seen, a token later: about 16 tokens count


class Costs(Protocol):
    def add(self, num_rows: int, num_tokens: int, seconds: float) -> None: ...

    def share(self, num_rows: int) -> float: ...


class Speculation:
    """Of one engine."""

    def __init__(
        self,
        num_tokens: int,  # proposed to a sequence in a step, at most
        make_proposer: Callable[[], Proposer] = PromptLookup,
        costs: Costs | None = None,
    ):
        self._num_tokens = num_tokens
        self._make_proposer = make_proposer
        self._costs = costs or StepCosts()
        self.num_proposals = 0  # rows that had something proposed
        self.num_proposed = 0  # tokens
        self.num_accepted = 0  # of these, that came and were told

    def propose(self, seq: Sequence, num_rows: int, most: int) -> list[int]:
        """What to run after the last token of a sequence, in a step of so many rows."""
        num_tokens = len(seq.tokens)
        most = min(most, self._num_tokens, seq.max_len - num_tokens - 1)
        if seq.bans(num_tokens):  # as it would not be all the way
            most = min(most, seq.min_len - num_tokens - 1)
        if most <= 0 or not _may_speculate(seq):
            return []
        if seq.guesses is None:
            seq.guesses = Guesses(self._make_proposer())
        return seq.guesses.make(seq.tokens, most, MARGIN * self._costs.share(num_rows))

    def learn(self, seq: Sequence, row: Row, token_ids: Tokens[int]) -> None:
        """What came, of which all but the last was proposed."""
        if seq.guesses is not None:
            seq.guesses.compare(token_ids)
        if row.num_proposed:
            self.num_proposals += 1
            self.num_proposed += row.num_proposed
            self.num_accepted += len(token_ids) - 1

    @contextmanager
    def timed(self, plan: StepPlan) -> Iterator[None]:
        """While a step is run."""
        began_s = perf_counter()
        yield
        if plan.rows and all(len(row.token_ids) == 1 + row.num_proposed for row in plan.rows):
            self._costs.add(len(plan.rows), plan.num_tokens, perf_counter() - began_s)


def _may_speculate(seq: Sequence) -> bool:
    """Not where each token decides what may come or has to come next."""
    if seq.is_draft or seq.grammar is not None:
        return False
    return seq.reasoning is None or seq.reasoning.over


class Guesses:
    """Of one sequence: what it is believed to go on with, and how often that came true. They are
    made and compared even where none is run, which costs next to nothing."""

    __slots__ = ("_guessed", "_num_right", "_num_seen", "_proposer")

    def __init__(self, proposer: Proposer):
        self._proposer = proposer
        self._guessed: list[int] = []
        self._num_right, self._num_seen = 1.0, 2.0

    def make(self, tokens: Tokens[int], most: int, share: float) -> list[int]:
        """Those worth running."""
        num = num_worth(self._num_right / self._num_seen, share, most)
        self._guessed = self._proposer.propose(tokens, max(1, num))
        return self._guessed[:num]

    def compare(self, token_ids: Tokens[int]) -> None:
        """These came."""
        for guess, token in zip(self._guessed, token_ids, strict=False):
            self._num_seen = self._num_seen * MEMORY + 1
            self._num_right = self._num_right * MEMORY + (guess == token)
            if guess != token:
                break
        self._guessed = []


def num_worth(chance: float, share: float, most: int) -> int:
    """How many tokens to propose, where each comes true with this chance if those before it did:
    as long as the chance that all do is more than the share of a token's cost that the last of
    them adds."""
    if chance <= share:
        return 0
    if share <= 0 or chance >= 1:
        return most
    return min(most, int(log(share) / log(chance)))
