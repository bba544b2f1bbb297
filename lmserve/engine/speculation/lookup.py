"""Proposals from a sequence's own tokens: what followed when it last ended as it ends now.

Texts that quote their prompt, edit it or repeat themselves are full of such places.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

SIZES = (5, 3)  # of the endings looked for, the longest first
MAX_INDEXED = 8192  # tokens of a prompt, its last: bounds memory, and the time of the first look


class Proposer(Protocol):
    """Of one sequence. Nothing that it proposes changes an answer, only how soon it is there."""

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        """Up to `most` tokens that may follow these, the ones of the last call and more."""


class PromptLookup:
    """Remembers where each run of a few tokens was seen last; each token is looked at once."""

    __slots__ = ("_ends", "_num_seen")

    def __init__(self) -> None:
        self._ends: dict[int, int] = {}  # by a run's hash: what is mistaken is not accepted
        self._num_seen = 0

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        self._index(tokens)
        for size in SIZES:
            end = self._ends.get(hash(tuple(tokens[-size:])))
            if end is not None:
                period = len(tokens) - end  # a run that repeats itself does so again
                return [tokens[end + at % period] for at in range(most)]
        return []

    def _index(self, tokens: Sequence[int]) -> None:
        """All runs but those at the very end: they would find themselves."""
        num_tokens = len(tokens)
        ends = self._ends
        for end in range(max(self._num_seen, num_tokens - MAX_INDEXED, SIZES[-1]), num_tokens):
            for size in SIZES:
                if size <= end:
                    ends[hash(tuple(tokens[end - size : end]))] = end
        self._num_seen = max(self._num_seen, num_tokens)
