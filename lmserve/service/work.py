"""A request on its way through the engine: what goes in, and how it came out."""

from __future__ import annotations

from dataclasses import dataclass

from lmserve.errors import DeadlineExceeded, EngineError
from lmserve.sampling import SamplingParams
from lmserve.service.transcript import Transcript
from lmserve.text.output import OutputText
from lmserve.types import Done, FinishReason

Outcome = Done | EngineError | DeadlineExceeded


def reason_of(outcome: Outcome) -> FinishReason:
    """As the metrics count it."""
    if isinstance(outcome, Done):
        return outcome.finish_reason
    return "error" if isinstance(outcome, EngineError) else "abort"


@dataclass(frozen=True, slots=True)
class Work:
    """A validated request, ready to be submitted."""

    model: str
    token_ids: list[int]
    sampling: SamplingParams
    output: OutputText
    arrived_s: float  # on the service's clock
    priority: int = 0
    deadline_s: float | None = None  # from the submission
    owner: str = ""
    session_id: int | None = None  # with `owner`, the client's handle to end it by
    transcript: Transcript | None = None  # kept of the answer
