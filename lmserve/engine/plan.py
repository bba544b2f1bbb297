"""The plan of one step, and its result: the values that cross from scheduler to runner.

No torch here. A row is one sequence's share of the step: "run these tokens from this
position on". Prefill, chunk, decode, resume and prefix hit are the same row with other
numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from lmserve.messages import TokenLogprob
from lmserve.sampling import SamplingParams

if TYPE_CHECKING:
    from lmserve.engine.grammars import Masks
    from lmserve.engine.sampling.rules import Rules

# The error of a row whose request asks for what cannot be.
NONE_LEFT = "no token may come next: what is allowed, banned and asked for leaves none"


@dataclass(frozen=True, slots=True)
class BlockCopy:
    """Copy the KV of the first `num_tokens` slots of block `source` into block `target`,
    on every layer, before the step writes anything. All copies of a plan are simultaneous:
    every source is read before any target is written."""

    source: int
    target: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class PromptShare:
    """What a row tells of its prompt beside the KV."""

    scored: range  # tokens whose log probabilities it gives, each from the position before
    num_top: int  # of the likeliest with each
    pooled: range  # positions whose hidden states it sums


class Row(msgspec.Struct, frozen=True):
    """One sequence's share of a step. A struct, for there are many: a frozen dataclass takes
    several times as long to make."""

    rid: int
    token_ids: Sequence[int]  # the tokens to run, at positions start … start + len - 1
    start: int  # tokens of this sequence whose KV is already in its blocks
    blocks: Sequence[int]  # block table; covers start + len(token_ids) tokens
    sampling: SamplingParams | None  # set when the last token's logits choose a new token
    history: Sequence[int] = ()  # all tokens so far, prompt first: for penalties (not copied)
    num_prompt_tokens: int = 0  # how many of `history` are the prompt
    banned_ids: Sequence[int] = ()  # end and stop tokens while below min_tokens
    forced: int | None = None  # the token that is chosen, whatever the logits
    rules: Rules | None = None  # biases and bans, where the request has some
    prompt: PromptShare | None = None

    @property
    def context_len(self) -> int:
        """Tokens in the cache once this row has run."""
        return self.start + len(self.token_ids)


@dataclass(frozen=True, slots=True)
class StepPlan:
    rows: list[Row]
    copies: list[BlockCopy] = field(default_factory=list)
    scrubs: list[int] = field(default_factory=list)  # blocks to zero, before the copies
    masks: Masks | None = None  # which tokens may come, where a row has a grammar

    @property
    def num_tokens(self) -> int:
        return sum(len(row.token_ids) for row in self.rows)


@dataclass(slots=True)
class StepResult:
    """What the runner gives back, by rid. Each row of the plan that samples is in exactly one of
    the first two; a row that does not is in `errors` or in neither."""

    tokens: dict[int, int] = field(default_factory=dict)  # the token chosen
    errors: dict[int, str] = field(default_factory=dict)  # why this row alone failed
    logprobs: dict[int, TokenLogprob] = field(default_factory=dict)  # of the token chosen
    prompt_logprobs: dict[int, list[TokenLogprob]] = field(default_factory=dict)
    pooled: dict[int, np.ndarray] = field(default_factory=dict)  # sums of hidden states, float64

    def add(self, other: StepResult) -> None:
        """Takes in the result of other rows."""
        for slot in fields(self):
            getattr(self, slot.name).update(getattr(other, slot.name))
