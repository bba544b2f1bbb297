"""Reasoning that takes too long is ended: the tokens that end it are forced, one a step.

How far it is follows from the sequence's tokens alone, so that preemption, resuming and new
settings change nothing. Only the first reasoning is bounded: what follows its end is the answer.
"""

from __future__ import annotations

from collections.abc import Sequence

from lmserve.sampling import SamplingParams, Thinking


class Reasoning:
    """Follows one sequence's output, each token once."""

    __slots__ = ("_begun", "_matched", "_num_spent", "_over", "_seen", "_thinking")

    def __init__(self, thinking: Thinking, num_prompt_tokens: int):
        self._thinking = thinking
        self._begun = not thinking.start_ids
        self._over = False
        self._seen = num_prompt_tokens
        self._num_spent = 0
        self._matched = 0  # tokens of the mark looked for that the output ends with

    @staticmethod
    def of(sampling: SamplingParams, num_prompt_tokens: int) -> Reasoning | None:
        """None where nothing is to be forced: without a budget, or where a grammar rules from
        the first token on."""
        thinking, grammar = sampling.thinking, sampling.grammar
        if thinking is None or not thinking.end_ids or (grammar is not None and not grammar.after):
            return None
        return Reasoning(thinking, num_prompt_tokens)

    @property
    def over(self) -> bool:
        """Nothing is forced any more."""
        return self._over

    def forced(self, tokens: Sequence[int]) -> int | None:
        """The token that has to come next after all these."""
        for at in range(self._seen, len(tokens)):
            self._take(tokens[at])
        self._seen = len(tokens)
        if not self._begun or self._over or self._num_spent < self._thinking.max_tokens:
            return None
        return self._thinking.end_ids[self._matched]  # what was begun by itself is completed

    def _take(self, token: int) -> None:
        if self._over:
            return
        self._num_spent += self._begun
        mark = self._thinking.end_ids if self._begun else self._thinking.start_ids
        self._matched = _num_matched(mark, self._matched, token)
        if self._matched == len(mark):
            self._over, self._begun, self._matched = self._begun, True, 0


def _num_matched(mark: tuple[int, ...], before: int, token: int) -> int:
    """How many tokens of the mark the output ends with, after one more."""
    end = (*mark[:before], token)
    return next((n for n in range(len(end), 0, -1) if end[-n:] == mark[:n]), 0)
