"""The plan of one step, and its result: the values that cross from scheduler to runner.

No torch here. A row is one sequence's share of the step: "run these tokens from this
position on". Prefill, chunk, decode, resume and prefix hit are the same row with other
numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from itertools import zip_longest
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from lmserve.messages import TokenLogprob
from lmserve.sampling import SamplingParams

if TYPE_CHECKING:
    from lmserve.engine.sampling.rules import Rules

# In place of a token that the step before draws, and nobody has read yet. The device has it.
UNREAD = -1

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
    # all tokens so far, prompt first: for penalties. Not copied: with one UNREAD it lacks that
    history: Sequence[int] = ()
    num_prompt_tokens: int = 0  # how many of `history` are the prompt
    banned_ids: Sequence[int] = ()  # end and stop tokens while below min_tokens
    forced: int | None = None  # the token that is chosen, whatever the logits
    rules: Rules | None = None  # biases and bans, where the request has some
    prompt: PromptShare | None = None
    num_proposed: int = 0  # the last so many of `token_ids` are not of the sequence (yet)

    @property
    def context_len(self) -> int:
        """Tokens in the cache once this row has run."""
        return self.start + len(self.token_ids)

    @property
    def is_unread(self) -> bool:
        """Its last token is drawn by the step before."""
        return self.token_ids[-1] == UNREAD

    @property
    def proposed(self) -> Sequence[int]:
        return self.token_ids[len(self.token_ids) - self.num_proposed :]

    @property
    def places(self) -> list[Row]:
        """A row for each token that is drawn: after its own tokens, and after each proposed."""
        if not self.num_proposed:
            return [self]
        first = len(self.token_ids) - self.num_proposed
        return [self._place(first + num, num) for num in range(self.num_proposed + 1)]

    def _place(self, num_tokens: int, num_proposed: int) -> Row:
        history = self.history
        if num_proposed and self.sampling is not None and (self.rules or self.sampling.penalised):
            history = [*history, *self.proposed[:num_proposed]]
        return msgspec.structs.replace(
            self, token_ids=self.token_ids[:num_tokens], num_proposed=0, history=history
        )

    def kept(self, drawn: Sequence[int | None]) -> list[int]:
        """The tokens that would have been drawn one by one, of those drawn at its places: up to
        the first that is not the proposed one."""
        kept: list[int] = []
        for token, proposed in zip_longest(drawn, self.proposed):
            if token is None:
                break
            kept.append(token)
            if token != proposed:
                break
        return kept


@dataclass(frozen=True, slots=True)
class StepPlan:
    rows: list[Row]
    copies: list[BlockCopy] = field(default_factory=list)
    scrubs: list[int] = field(default_factory=list)  # blocks to zero, before the copies
    sources: list[int] = field(default_factory=list)  # of the copies: held until the commit

    @property
    def num_tokens(self) -> int:
        return sum(len(row.token_ids) for row in self.rows)


@dataclass(slots=True)
class StepResult:
    """What the runner gives back, by rid. Each row of the plan that samples is in exactly one of
    the first two; a row that does not is in `errors` or in neither."""

    # the tokens chosen: one, and one more for each proposed one that came
    tokens: dict[int, list[int]] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)  # why this row alone failed
    logprobs: dict[int, list[TokenLogprob]] = field(default_factory=dict)  # of those, if asked
    prompt_logprobs: dict[int, list[TokenLogprob]] = field(default_factory=dict)
    pooled: dict[int, np.ndarray] = field(default_factory=dict)  # sums of hidden states, float64

    def add(self, other: StepResult) -> None:
        """Takes in the result of other rows."""
        for slot in fields(self):
            getattr(self, slot.name).update(getattr(other, slot.name))
