"""What `POST /v1/chat/completions` answers: whole, and in chunks."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from lmserve.protocol.logprobs import ChatLogprobs, PromptLogprob
from lmserve.protocol.tools import ToolCall, ToolCallDelta
from lmserve.protocol.usage import PromptProgressInfo, TimingsInfo, UsageInfo
from lmserve.types import FinishReason

PromptTokenIds = Annotated[list[int] | UnsetType, Meta(description="Only with `return_token_ids`.")]
TokenIds = Annotated[
    list[int] | UnsetType,
    Meta(description="Only with `return_token_ids`: the end token too."),
]
PromptLogprobList = Annotated[
    list[dict[str, PromptLogprob] | None] | UnsetType,
    Meta(
        description="Only with `prompt_logprobs`: null for the first token, then of each token "
        "and of those in its place, by their ids."
    ),
]
Timings = Annotated[TimingsInfo | UnsetType, Meta(description="Only with `return_timings`.")]


class ChatAnswer(Struct, kw_only=True):
    """The assistant's message."""

    role: Literal["assistant"] = "assistant"
    content: Annotated[str | None, Meta(description="Null where it only calls functions.")]
    reasoning_content: Annotated[
        str | UnsetType, Meta(description="What it thought before, where the model does.")
    ] = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatCompletionResponseChoice(Struct, kw_only=True):
    index: int
    message: ChatAnswer
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason
    token_ids: TokenIds = UNSET


class ChatCompletionResponse(Struct, kw_only=True):
    """The whole answer, without `stream`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: Annotated[int, Meta(description="Unix time in seconds.")]
    model: str
    choices: list[ChatCompletionResponseChoice]
    usage: UsageInfo
    prompt_token_ids: PromptTokenIds = UNSET
    prompt_logprobs: PromptLogprobList = UNSET
    timings: Timings = UNSET


class DeltaMessage(Struct, kw_only=True, omit_defaults=True):
    """What a chunk adds to the answer."""

    role: Annotated[Literal["assistant"] | None, Meta(description="In the first chunk only.")] = (
        None
    )
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChatCompletionResponseStreamChoice(Struct, kw_only=True):
    index: int
    delta: DeltaMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None
    token_ids: TokenIds = UNSET


class ChatCompletionStreamResponse(Struct, kw_only=True):
    """One chunk of a streamed answer."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: Annotated[
        list[ChatCompletionResponseStreamChoice],
        Meta(description="Empty in the chunk that holds the usage, and while the prompt is run."),
    ]
    usage: Annotated[
        UsageInfo | UnsetType | None, Meta(description="Only with `stream_options.include_usage`.")
    ] = UNSET
    prompt_progress: Annotated[
        PromptProgressInfo | UnsetType, Meta(description="Only with `return_progress`.")
    ] = UNSET
    prompt_token_ids: PromptTokenIds = UNSET
    prompt_logprobs: PromptLogprobList = UNSET
    timings: Timings = UNSET
