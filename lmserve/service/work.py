"""A request on its way through the engine: what goes in, and how it came out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lmserve.errors import DeadlineExceeded, EngineError, EngineUnavailable, Unsatisfiable
from lmserve.sampling import SamplingParams
from lmserve.service.choices import Choices
from lmserve.service.transcript import Transcript
from lmserve.text.output import OutputText
from lmserve.text.parsing.parser import AnswerParser
from lmserve.text.tokenizer import Tokenizer
from lmserve.types import Done, FinishReason

Outcome = Done | EngineError | EngineUnavailable | DeadlineExceeded | Unsatisfiable

_FAILED = (EngineError, EngineUnavailable, Unsatisfiable)


def reason_of(outcome: Outcome) -> FinishReason:
    """As the metrics count it."""
    if isinstance(outcome, Done):
        return outcome.finish_reason
    return "error" if isinstance(outcome, _FAILED) else "abort"


@dataclass(frozen=True, slots=True)
class Work:
    """A validated request, ready to be submitted."""

    model: str
    token_ids: list[int]
    sampling: SamplingParams
    output: OutputText
    vocabulary: Tokenizer
    arrived_s: float  # on the service's clock
    priority: int = 0
    deadline_s: float | None = None  # from the submission
    owner: str = ""
    cache_salt: str = ""
    session_id: int | None = None  # with `owner`, the client's handle to end it by
    encoded_s: float | None = None  # when its prompt was tokens, on that clock
    operation: str = "text_completion"  # or `chat`, `embeddings`: as OpenTelemetry names them
    transcript: Transcript | None = None  # kept of the answer
    parser: AnswerParser | None = None  # tells its parts apart
    shows_logprobs: bool = False  # else they are only for choosing the best
    choices: Choices = field(default_factory=Choices)  # the answers that it is one of


@dataclass(frozen=True, slots=True)
class Run:
    """A prompt that is run and not answered."""

    index: int  # of the request that it is of
    token_ids: list[int]
    sampling: SamplingParams
    label: Sequence[int] = ()  # more tokens, after those
