"""The plan of one step, and its result: the values that cross from scheduler to runner.

No torch here. A row is one sequence's share of the step: "run these tokens from this
position on". Prefill, chunk, decode, resume and prefix hit are the same row with other
numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lmserve.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class BlockCopy:
    """Copy the KV of the first `num_tokens` slots of block `source` into block `target`,
    on every layer, before the step writes anything. All copies of a plan are simultaneous:
    every source is read before any target is written."""

    source: int
    target: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence's share of a step."""

    rid: int
    token_ids: Sequence[int]  # the tokens to run, at positions start … start + len - 1
    start: int  # tokens of this sequence whose KV is already in its blocks
    blocks: Sequence[int]  # block table; covers start + len(token_ids) tokens
    sampling: SamplingParams | None  # set when the last token's logits choose a new token
    history: Sequence[int] = ()  # all tokens so far, prompt first: for penalties (not copied)
    num_prompt_tokens: int = 0  # how many of `history` are the prompt
    banned_ids: Sequence[int] = ()  # end and stop tokens while below min_tokens

    @property
    def context_len(self) -> int:
        """Tokens in the cache once this row has run."""
        return self.start + len(self.token_ids)


@dataclass(frozen=True, slots=True)
class StepPlan:
    rows: list[Row]
    copies: list[BlockCopy] = field(default_factory=list)
    scrubs: list[int] = field(default_factory=list)  # blocks to zero, before the copies

    @property
    def num_tokens(self) -> int:
        return sum(len(row.token_ids) for row in self.rows)


@dataclass(slots=True)
class StepResult:
    """What the runner gives back. Each row of the plan that samples is in exactly one; a row
    that does not is in `errors` or in none."""

    tokens: dict[int, int] = field(default_factory=dict)  # rid -> the token chosen
    errors: dict[int, str] = field(default_factory=dict)  # rid -> why this row alone failed
