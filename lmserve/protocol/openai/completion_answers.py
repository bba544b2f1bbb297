"""What `POST /v1/completions` answers: whole, and in chunks."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from lmserve.protocol.logprobs import CompletionLogprobs
from lmserve.protocol.openai.chat_answers import (
    PromptLogprobList,
    PromptTokenIds,
    Timings,
    TokenIds,
)
from lmserve.protocol.usage import PromptProgressInfo, UsageInfo
from lmserve.types import FinishReason


class CompletionResponseChoice(Struct, kw_only=True):
    index: Annotated[
        int, Meta(description="Of the prompt in the call, times `n`, and of the answer to it.")
    ]
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason
    token_ids: TokenIds = UNSET
    prompt_token_ids: PromptTokenIds = UNSET
    prompt_logprobs: PromptLogprobList = UNSET


class CompletionResponse(Struct, kw_only=True):
    """All continuations, without `stream`."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: Annotated[int, Meta(description="Unix time in seconds.")]
    model: str
    choices: list[CompletionResponseChoice]
    usage: UsageInfo
    timings: Timings = UNSET


class CompletionResponseStreamChoice(Struct, kw_only=True):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None = None
    token_ids: TokenIds = UNSET
    prompt_token_ids: PromptTokenIds = UNSET
    prompt_logprobs: PromptLogprobList = UNSET


class CompletionStreamResponse(Struct, kw_only=True):
    """One chunk of a streamed continuation."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: Annotated[
        list[CompletionResponseStreamChoice],
        Meta(description="Empty in the chunk that holds the usage, and while a prompt is run."),
    ]
    usage: Annotated[
        UsageInfo | UnsetType | None, Meta(description="Only with `stream_options.include_usage`.")
    ] = UNSET
    prompt_progress: Annotated[
        PromptProgressInfo | UnsetType, Meta(description="Only with `return_progress`.")
    ] = UNSET
    timings: Timings = UNSET
