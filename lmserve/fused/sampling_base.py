"""The interface of sampling on the device: what a step asks of its logits, in a few launches.

Two forms, as of the other fused ops: Triton kernels, and a twin in plain torch. Both take the
tokens of a row by their logit, the first of equals first, and give each the weight
exp((logit - likeliest) / temperature) as a whole number of 2**-44ths: sums are exact, so that
neither their order nor the batch changes an answer. Every cut is one of these:

- the tokens of top_k: so many of the first;
- of min_p: those whose weight is at least so much (the likeliest's is 1);
- of top_p: the fewest first tokens, of those that the first two left, that have such a share.

A token is drawn by the row's uniform number: among the first tokens in that order where something
is cut, in the order of the vocabulary where nothing is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar

import torch

ONE = 2**44  # the weight of the likeliest; 2**18 of them and more are below 2**63
LARGEST = 1e30  # a logit, after penalties
MAX_COUNT = 2**15 - 1  # of a token: it counts no further
PROMPT_ONLY = -1  # the count of a token of the prompt that is not in the output


class Column(IntEnum):
    """Of a row of settings, int64: whole numbers, and the bits of float64."""

    TOP_K = 0  # 0: all
    MIN_WEIGHT = 1  # of min_p
    STREAM = 2  # of the seed
    PENALISED = 3  # 0 or 1
    TEMPERATURE = 4  # float64 from here on; 0: greedy
    TOP_P = 5
    REPETITION = 6
    PRESENCE = 7
    FREQUENCY = 8


@dataclass(frozen=True, slots=True)
class Chosen:
    """On the device, a place for each row of logits. Token 0 where none could be chosen."""

    tokens: torch.Tensor  # int64
    finite: torch.Tensor  # bool: all of the row's logits are numbers
    alive: torch.Tensor  # bool: a token may come


@dataclass(frozen=True, slots=True)
class Settings:
    """Of every slot, on the device."""

    table: torch.Tensor  # (slots, len(Column)) int64
    counts: torch.Tensor | None = None  # (slots, vocab) int16, where any row was ever penalised

    @property
    def numbers(self) -> torch.Tensor:
        """The table as float64."""
        return self.table.view(torch.float64)


class SamplingOps(ABC):
    """Nothing here waits for the device, makes a tensor of host data or writes to the logits: a
    graph may capture it."""

    name: ClassVar[str]

    @abstractmethod
    def likeliest(self, logits: torch.Tensor) -> Chosen:
        """The likeliest token of each row (B, V) of floats, the first of equals."""

    @abstractmethod
    def draw(
        self,
        logits: torch.Tensor,  # (B, V), any float dtype
        settings: Settings,
        slots: torch.Tensor,  # (B) int64: whose settings each row has
        indices: torch.Tensor,  # (B) int64: of its uniform number
        *,
        banned: bool = False,  # a logit may be -inf: the token may not come
        counting: bool = True,  # the tokens chosen are counted, of penalised rows
    ) -> Chosen:
        """A token for each row: penalties, temperature, top_k, min_p, top_p."""


def sampling_ops(kernels: str) -> SamplingOps:
    """Of the setting of that name."""
    if kernels == "triton":
        from lmserve.fused.sampling_triton import TritonSampling

        return TritonSampling()
    from lmserve.fused.sampling_plain import PlainSampling

    return PlainSampling()
