"""Plans are launched, and read later; what fails as a whole is run again (`recovery`)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lmserve.engine.flight import Flight
from lmserve.engine.grammars import Masks
from lmserve.engine.plan import Row, StepPlan, StepResult
from lmserve.engine.recovery import Recovery
from lmserve.engine.sequence import Sequence as TokenSequence
from lmserve.engine.step_runner import Launched, StepRunner

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Step:
    """A plan, from its launch to its commit."""

    plan: StepPlan
    flights: list[Flight]  # of its rows
    masks: Masks | None = None  # which tokens may come, where a row has a grammar
    launched: Launched | None = None
    failure: Exception | None = None  # launching, drawing or reading it


class Steps:
    """Every failure of a launched step is met when it is read."""

    def __init__(
        self, runner: StepRunner, recovery: Recovery, running: Mapping[int, TokenSequence]
    ):
        self._runner = runner
        self._recovery = recovery
        self._running = running  # the scheduler's

    def launch(self, step: Step) -> None:
        try:
            step.launched = self._runner.launch(step.plan)
        except Exception as error:
            step.failure = error

    def draw(self, step: Step) -> None:
        """Chooses the tokens, once those of the step before are read."""
        if step.launched is None:
            return
        try:
            step.launched.draw(_rows_to_draw(step), step.masks)
        except Exception as error:
            step.launched, step.failure = None, error

    def read(self, step: Step, after: Step | None = None) -> StepResult:
        """What it came to. `after` was launched on top of it: where this failed, it has to be run
        again."""
        if step.launched is not None:
            try:
                return step.launched.result()
            except Exception as error:
                step.failure = error
        if step.failure is not None:
            logger.warning("a step of %d rows failed", len(step.plan.rows), exc_info=step.failure)
            step.failure = step.failure.with_traceback(None)  # which would hold its tensors
        step.launched = None
        if after is not None:
            _drop(after)
        rows = [flight.row_now() for flight in step.flights if flight.is_wanted]

        def attempt(plan: StepPlan) -> StepResult:
            launched = self._runner.launch(plan)
            launched.draw(plan.rows, step.masks)
            return launched.result()

        # of fewer rows it says nothing
        failure = step.failure if len(rows) == len(step.flights) else None
        return self._recovery.run(self._plan_now(step.plan, rows), attempt, failure)

    def _plan_now(self, plan: StepPlan, rows: list[Row]) -> StepPlan:
        """What is done to blocks that somebody else has by now is left out."""
        held = {block for seq in self._running.values() for block in seq.blocks}
        copies = [copy for copy in plan.copies if copy.target in held]
        return StepPlan(rows, copies, [block for block in plan.scrubs if block in held])


def _drop(step: Step) -> None:
    """Returns when the device has done with it. It is to be run again."""
    launched, step.launched, step.failure = step.launched, None, None
    if launched is not None:
        try:
            launched.result()
        except Exception:
            logger.debug("what a failed step was followed by failed too", exc_info=True)


def _rows_to_draw(step: Step) -> Sequence[Row]:
    if not any(row.is_unread for row in step.plan.rows):
        return step.plan.rows
    return [flight.row_now() for flight in step.flights]
