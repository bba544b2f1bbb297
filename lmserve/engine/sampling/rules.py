"""What a request's settings say of every choice: biases, and tokens that may not come."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from lmserve.sampling import SamplingParams

Bits = np.ndarray[tuple[int], np.dtype[np.int32]]


class Rules:
    """Made once a request. Most have none."""

    __slots__ = ("_banned", "_words", "allowed", "bias")

    def __init__(self, sampling: SamplingParams):
        self.bias = sampling.logit_bias
        #: A bit for each token, as a grammar's mask has it; None: all may come.
        self.allowed = _bits(sampling.allowed_token_ids) if sampling.allowed_token_ids else None
        words = sampling.bad_words
        self._banned = [word[0] for word in words if len(word) == 1]
        self._words: dict[int, list[tuple[int, ...]]] = defaultdict(list)  # by the last but one
        for word in words:
            if len(word) > 1:
                self._words[word[-2]].append(word)

    @staticmethod
    def of(sampling: SamplingParams) -> Rules | None:
        if sampling.logit_bias or sampling.allowed_token_ids or sampling.bad_words:
            return Rules(sampling)
        return None

    def banned_after(self, tokens: Sequence[int]) -> list[int]:
        """What would complete a bad word after these."""
        words = self._words.get(tokens[-1]) if self._words and tokens else None
        if not words:
            return self._banned
        ends = [word for word in words if tuple(tokens[1 - len(word) :]) == word[:-1]]
        return [*self._banned, *(word[-1] for word in ends)]


def _bits(token_ids: Sequence[int]) -> Bits:
    flags = np.zeros(-(-(max(token_ids) + 1) // 32) * 32, dtype=np.uint8)
    flags[list(token_ids)] = 1
    return np.packbits(flags, bitorder="little").view(np.int32)
