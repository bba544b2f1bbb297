"""The words the service speaks: requests in, events out. Plain data, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True, slots=True)
class History:
    """What an earlier turn of a conversation ran: the first `num_messages` messages of the next
    request, the last of them an answer, became exactly these tokens (without its end token)."""

    token_ids: list[int]
    num_messages: int


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One answer to produce, as a route hands it to the service.

    Exactly one of `messages`, `text` and `token_ids` is set. None in a number means "not
    given": the model's own generation defaults apply, then those of `SamplingParams`.
    """

    model: str | None = None
    messages: list[dict[str, Any]] | None = None  # rendered through the chat template
    history: History | None = None  # what ran before: only the rest is rendered
    text: str | None = None  # tokenised as it is
    token_ids: list[int] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    # `prompt`, `max_tokens`, `min_tokens` or `stop` to the client's name of it, if that is another
    params: dict[str, str] = field(default_factory=dict)
    # `token_ids` end in mid-answer, and what comes before it is `history`; or the last of
    # `messages` is the answer's beginning, its content a string
    continues: bool = False
    priority: int = 0  # lower runs first
    deadline_s: float | None = None  # from its arrival: the answer is worth nothing after that
    # who asks ("" where no keys are set) and the client's handle to end the answer by
    owner: str = ""
    session_id: int | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int  # of the prompt, taken from the prefix tree

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(slots=True)  # not frozen: made once a token, and freezing triples its cost
class TextDelta:
    """More text. `token_ids` are the tokens that became visible or were held with it."""

    text: str
    token_ids: list[int]


@dataclass(frozen=True, slots=True)
class Done:
    """The one terminal event of a generation that did not fail (failures raise)."""

    finish_reason: FinishReason
    usage: Usage
    stop_reason: str | int | None = None  # the stop string or token id that ended it


Event = TextDelta | Done
