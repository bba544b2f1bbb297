"""The words the service speaks: requests in, events out. Plain data, no behaviour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from lmserve.messages import TokenLogprob

FinishReason = Literal["stop", "length", "tool_calls", "abort", "error"]


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """What the holder of one API key may take of the server; None: no limit of its own."""

    max_requests: int | None = None  # waiting or running
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None  # of prompts and answers
    weight: float = 1.0  # its share of the engine, beside others'


@dataclass(frozen=True, slots=True)
class History:
    """What an earlier turn of a conversation ran: the first `num_messages` messages of the next
    request, the last of them an answer, became exactly these tokens (without its end token)."""

    token_ids: list[int]
    num_messages: int


@dataclass(frozen=True, slots=True)
class Structure:
    """What the answer has to be, in the client's words. `value`: of `json_object` None, of
    `json_schema` the schema, of `choice` a list of texts, of the others a text."""

    kind: Literal["json_object", "json_schema", "regex", "choice", "grammar"]
    value: Any = None
    param: str = "response_format"  # what the client calls it


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: Mapping[str, Any] | None = None  # a JSON schema of its arguments; None: any object
    strict: bool = False  # its arguments obey the schema even where it is called unasked


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether the model may call a function, must, or must call this one."""

    mode: Literal["none", "auto", "required"] = "auto"
    name: str | None = None  # with `required`: the one to call
    parallel: bool = True  # more than one call in an answer


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
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed_token_ids: tuple[int, ...] = ()
    bad_words: tuple[str, ...] = ()
    logprobs: int | None = None  # of each token, with so many alternatives
    prompt_logprobs: int | None = None
    prompt_logprobs_start: int = 0  # the first token of the prompt that they are wanted of
    structure: Structure | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    thinking_budget: int | None = None  # tokens of reasoning
    n: int = 1  # answers to the same prompt: `Service.generate_all` makes them all
    best_of: int | None = None  # so many are made, for the caller to pick the `n` best of
    may_be_empty: bool = False  # `max_tokens` may be 0; so it may with `prompt_logprobs`
    splits: bool = False  # reasoning and calls are told apart from the text: `TextDelta.parts`
    tell_progress: bool = False  # of the prompt, as it is run
    include_stop: bool = False  # the stop string that ends it is shown
    skip_special_tokens: bool = True
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    # a field's name to the client's name of it, if that is another
    params: dict[str, str] = field(default_factory=dict)
    # `token_ids` end in mid-answer, and what comes before it is `history`; or the last of
    # `messages` is the answer's beginning, its content a string
    continues: bool = False
    priority: int = 0  # lower runs first
    deadline_s: float | None = None  # from its arrival: the answer is worth nothing after that
    # who asks ("" where no keys are set) and the client's handle to end the answer by
    owner: str = ""
    session_id: int | None = None
    cache_salt: str = ""  # its KV is found only by requests with the same


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int  # of the prompt, taken from the prefix tree
    reasoning_tokens: int = 0  # of the completion

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class NamedLogprob(msgspec.Struct, array_like=True, frozen=True):
    """A token's log probability, and the likeliest in its place; each token by its bytes, which
    mean the same whatever model is served later."""

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Content:
    """More of what is said to the user."""

    text: str
    logprobs: tuple[NamedLogprob, ...] = ()  # of its tokens, where they were asked for


@dataclass(frozen=True, slots=True)
class Reasoning:
    """More of what the model thinks before it speaks."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegun:
    """A function is called; its arguments follow."""

    index: int  # of the answer's calls
    id: str  # call_…
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of the arguments of call `index`: a piece of JSON text."""

    index: int
    text: str


Part = Content | Reasoning | CallBegun | CallArguments


@dataclass(frozen=True, slots=True)
class PromptProgress:
    """How much of the prompt has been run."""

    num_tokens: int  # of the prompt
    num_cached: int  # of these, from the prefix tree
    num_run: int  # of these done, with the cached ones
    passed_s: float  # since its first step


class TextDelta(msgspec.Struct):  # made once a token: a dataclass takes three times as long
    """More text. `token_ids` are the tokens that became visible or were held with it. The text is
    empty only where there are parts, log probabilities or progress to tell."""

    text: str  # as the model made it
    token_ids: list[int]
    parts: Sequence[Part] | None = None  # the same told apart, where `splits` was asked for
    logprobs: list[TokenLogprob] | None = None  # of `token_ids`, where they were asked for
    progress: PromptProgress | None = None  # before there is text, with `tell_progress`


@dataclass(frozen=True, slots=True)
class Done:
    """The one terminal event of a generation that did not fail (failures raise)."""

    finish_reason: FinishReason
    usage: Usage
    stop_reason: str | int | None = None  # the stop string or token id that ended it


Event = TextDelta | Done
