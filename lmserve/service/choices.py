"""Several answers to one prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import msgspec

from lmserve.sampling import SamplingParams
from lmserve.service import limits
from lmserve.types import GenerateRequest


class Choices:
    """The answers to one prompt, counted as they end."""

    __slots__ = ("_num_open", "most_tokens", "num")

    def __init__(self, num: int = 1):
        self.num = num
        self.most_tokens = 0  # of those that ended
        self._num_open = num

    def ended(self, num_tokens: int) -> bool:
        """One of them has. Says whether it was the last."""
        self.most_tokens = max(self.most_tokens, num_tokens)
        self._num_open -= 1
        return self._num_open == 0


def of_choices(
    request: GenerateRequest, sampling: SamplingParams, num: int
) -> list[SamplingParams]:
    """Those of so many answers: each with its own seed, and with log probabilities where the best
    are to be chosen."""
    if num > request.n and sampling.logprobs is None:
        sampling = msgspec.structs.replace(sampling, logprobs=0)
    seeds = [limits.seed_after(sampling.seed, index) for index in range(1, num)]
    return [sampling, *(msgspec.structs.replace(sampling, seed=seed) for seed in seeds)]


class Rated(Protocol):
    @property
    def mean_logprob(self) -> float: ...


T = TypeVar("T", bound=Rated)


def best(generations: Sequence[T], n: int) -> list[T]:
    """The `n` whose tokens are likeliest by the mean, best first; of equals the earlier. All have
    ended, and are answers to the same prompt."""
    return sorted(generations, key=lambda one: -one.mean_logprob)[:n]
