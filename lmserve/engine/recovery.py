"""What is done about a step that failed as a whole: it is run again in parts.

What did not fit the memory is run in halves, of halves where need be, rows cut between their
tokens; steps are smaller from then on. What failed in another way is run row by row. A row fails
that fails alone. Running again is safe: a row writes the same KV to the same slots, and no row of
a plan writes the source of a copy.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from lmserve.engine.plan import PromptShare, Row, StepPlan, StepResult
from lmserve.engine.verbs import one_line

logger = logging.getLogger(__name__)

Attempt = Callable[[StepPlan], StepResult]  # a step from its launch to its end
MIN_STEP_TOKENS = 64  # steps are not made smaller: it is something else that fills the memory


@dataclass(slots=True)
class Recovery:
    is_out_of_memory: Callable[[BaseException], bool]
    release_cached: Callable[[], None]
    lower_limit: Callable[[int], None]  # told how many tokens a step may have from now on

    def run(
        self,
        plan: StepPlan,
        attempt: Attempt,
        failure: Exception | None = None,  # of the plan; None: it was not tried
    ) -> StepResult:
        rerun = _Rerun(self, attempt, StepPlan([], plan.copies, plan.scrubs))
        if plan.rows:
            rerun.run(plan.rows, failure)
        else:
            if failure is not None and self.is_out_of_memory(failure):
                self.release_cached()
            attempt(plan)  # whoever has these blocks cannot go on without: else the engine ends
        if rerun.num_too_many is not None:
            self._lower(rerun.num_too_many)
        return rerun.result

    def _lower(self, num_tokens: int) -> None:
        """So many did not fit."""
        most = max(num_tokens // 2, MIN_STEP_TOKENS)
        if most < num_tokens:
            logger.warning(
                "a step of %d tokens ran out of memory: steps have %d at most from now on; "
                "a lower --cache-max-entry-count or --max-step-tokens avoids this",
                num_tokens,
                most,
            )
            self.lower_limit(most)


@dataclass(slots=True)
class _Rerun:
    recovery: Recovery
    attempt: Attempt
    first: StepPlan  # copies and scrubs, to be made until they are
    result: StepResult = field(default_factory=StepResult)
    is_released: bool = False
    num_too_many: int | None = None  # the fewest tokens that did not fit

    def run(self, rows: list[Row], failure: Exception | None = None) -> None:
        if not rows:
            return
        failure = failure or self._try(rows)
        if failure is None:
            return
        if self.recovery.is_out_of_memory(failure):
            parts = self._smaller(rows)
        else:
            parts = [[row] for row in rows] if len(rows) > 1 else []
        if not parts:
            self.result.errors[rows[0].rid] = one_line(failure)
        for part in parts:
            self.run([row for row in part if row.rid not in self.result.errors])

    def _try(self, rows: list[Row]) -> Exception | None:
        try:
            result = self.attempt(StepPlan(rows, self.first.copies, self.first.scrubs))
        except Exception as error:
            return error.with_traceback(None)  # which would hold what takes the memory
        self.first = StepPlan([])
        _join(self.result, result)
        return None

    def _smaller(self, rows: list[Row]) -> list[list[Row]]:
        """What is tried in place of rows that ran out of memory; at first the same again."""
        self.recovery.release_cached()
        if not self.is_released:
            self.is_released = True
            return [rows]
        num_failed = num_tokens(rows)
        self.num_too_many = min(num_failed, self.num_too_many or num_failed)
        return halves(rows)


def num_tokens(rows: Sequence[Row]) -> int:
    return sum(len(row.token_ids) for row in rows)


def halves(rows: Sequence[Row]) -> list[list[Row]]:
    """Two lists of about as many tokens, to be run one after the other; [] where there is but one
    token, or what belongs to it."""
    room = num_tokens(rows) // 2
    first: list[Row] = []
    rest: list[Row] = []
    for row in rows:
        num_own = len(row.token_ids) - row.num_proposed
        if len(row.token_ids) <= room and not rest:
            first.append(row)
            room -= len(row.token_ids)
        elif not rest and 0 < (at := min(room, num_own - 1)):
            first.append(_head(row, at))
            rest.append(_tail(row, at))
        else:
            rest.append(row)
    if not first and len(rest) > 1:
        first.append(rest.pop(0))
    return [first, rest] if first else []


def _head(row: Row, at: int) -> Row:
    """Its first tokens. The last of a row is what chooses a token, and is not among them."""
    return msgspec.structs.replace(
        row,
        token_ids=row.token_ids[:at],
        sampling=None,
        num_proposed=0,
        prompt=_share(row.prompt, row.start, row.start + at),
    )


def _tail(row: Row, at: int) -> Row:
    return msgspec.structs.replace(
        row,
        token_ids=row.token_ids[at:],
        start=row.start + at,
        prompt=_share(row.prompt, row.start + at, row.context_len),
    )


def _share(share: PromptShare | None, start: int, end: int) -> PromptShare | None:
    """Of positions start … end - 1, which score the tokens after them."""
    if share is None:
        return None
    scored = _overlap(share.scored, start + 1, end + 1)
    pooled = _overlap(share.pooled, start, end)
    return PromptShare(scored, share.num_top, pooled) if scored or pooled else None


def _overlap(part: range, start: int, end: int) -> range:
    return range(max(part.start, start), min(part.stop, end))


def _join(result: StepResult, other: StepResult) -> None:
    """Adds what came after it. A row that was cut tells of its prompt in parts."""
    for rid, told in result.prompt_logprobs.items():
        if rid in other.prompt_logprobs:
            other.prompt_logprobs[rid] = told + other.prompt_logprobs[rid]
    for rid, pooled in result.pooled.items():
        if rid in other.pooled:
            other.pooled[rid] = pooled + other.pooled[rid]
    result.add(other)
