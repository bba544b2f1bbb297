"""Answers that are kept, as they are told: OpenAI's Response object."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from lmserve.protocol.responses.items import ResponseOutputItem
from lmserve.protocol.responses.settings import (
    ResponseConversation,
    ResponseReasoning,
    ResponseText,
    ResponseTextFormat,
)
from lmserve.protocol.tools import ResponseTool
from lmserve.types import Usage

ResponseStatus = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]

# What OpenAI's clients know; other failures are `server_error`, and `type` says which.
_ERROR_CODES = ("server_error", "rate_limit_exceeded", "invalid_prompt")


class ResponseFailure(Struct, kw_only=True):
    """Why it failed."""

    code: Annotated[str, Meta(description="`server_error`, where no other of OpenAI's fits.")]
    message: str
    type: Annotated[str, Meta(description="The code that this server's errors have.")]

    @classmethod
    def of(cls, code: str, message: str) -> ResponseFailure:
        known = code if code in _ERROR_CODES else "server_error"
        return cls(code=known, message=message, type=code)


class ResponseIncompleteDetails(Struct, kw_only=True):
    """Why an answer is not whole."""

    reason: Annotated[
        str,
        Meta(
            description="`max_output_tokens`, `steered`; and, ours: `server_restart`, "
            "`server_shutdown`, `abandoned` (nobody read it for too long), `deadline`."
        ),
    ]


class ResponseInputTokensDetails(Struct, kw_only=True):
    """What of the input was reused, and what was run."""

    cached_tokens: Annotated[int, Meta(description="Of the input, which were not run again.")]
    cache_write_tokens: Annotated[int, Meta(description="Of the input, which were run.")]


class ResponseOutputTokensDetails(Struct, kw_only=True):
    """What the answer was made of."""

    reasoning_tokens: Annotated[int, Meta(description="Of the output.")]


class ResponseUsage(Struct, kw_only=True):
    """Tokens of one answer."""

    input_tokens: int
    input_tokens_details: ResponseInputTokensDetails
    output_tokens: int
    output_tokens_details: ResponseOutputTokensDetails
    total_tokens: int

    @classmethod
    def of(cls, usage: Usage) -> ResponseUsage:
        return cls(
            input_tokens=usage.prompt_tokens,
            input_tokens_details=ResponseInputTokensDetails(
                cached_tokens=usage.cached_tokens,
                cache_write_tokens=usage.prompt_tokens - usage.cached_tokens,
            ),
            output_tokens=usage.completion_tokens,
            output_tokens_details=ResponseOutputTokensDetails(
                reasoning_tokens=usage.reasoning_tokens
            ),
            total_tokens=usage.total_tokens,
        )


class ResponseObject(Struct, kw_only=True):
    """An answer that is kept, running or not."""

    id: str
    object: Literal["response"] = "response"
    created_at: Annotated[int, Meta(description="Unix time in seconds.")]
    completed_at: Annotated[int | None, Meta(description="Once it is `completed`.")] = None
    status: ResponseStatus
    background: bool = False
    conversation: Annotated[
        ResponseConversation | None, Meta(description="Where it was asked for in a session.")
    ] = None
    error: Annotated[ResponseFailure | None, Meta(description="With `failed`.")] = None
    incomplete_details: Annotated[
        ResponseIncompleteDetails | None, Meta(description="With `incomplete`.")
    ] = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    model: str
    output: Annotated[
        list[ResponseOutputItem], Meta(description="Empty where nothing was said (yet).")
    ]
    parallel_tool_calls: bool = True
    previous_response_id: Annotated[
        str | None, Meta(description="The response that it follows.")
    ] = None
    prompt_cache_key: str | None = None
    reasoning: ResponseReasoning | None = None
    safety_identifier: str | None = None
    service_tier: str = "default"
    store: bool = True
    temperature: float | None = None
    text: ResponseText = field(
        default_factory=lambda: ResponseText(format=ResponseTextFormat(type="text"))
    )
    tool_choice: str | dict[str, Any] = "auto"
    tools: list[ResponseTool] = field(default_factory=list)
    top_logprobs: int = 0
    top_p: float | None = None
    truncation: str = "disabled"
    usage: Annotated[ResponseUsage | None, Meta(description="Once it has ended.")] = None
    user: str | None = None
    session: Annotated[str, Meta(description="The session whose tree it is in.")]
    input_message_ids: Annotated[list[str], Meta(description="The messages that were new.")]
    message_id: Annotated[str | None, Meta(description="The answer's message.")] = None
    successor: Annotated[
        str | None, Meta(description="Where it was steered: the response that goes on.")
    ] = None


# What `Record.told` may set.
TOLD = frozenset(
    ("background", "conversation", "instructions", "max_output_tokens", "max_tool_calls")
    + ("metadata", "parallel_tool_calls", "prompt_cache_key", "reasoning", "safety_identifier")
    + ("store", "temperature", "text", "tool_choice", "tools", "top_logprobs", "top_p", "user")
)


class ResponseDeleted(Struct, kw_only=True):
    """It is gone."""

    id: str
    object: Literal["response"] = "response"
    deleted: bool = True


class ResponseSteered(Struct, kw_only=True):
    """What was said is on disk, and will be applied as soon as may be."""

    id: Annotated[str, Meta(description="Of the steer.")]
    object: Literal["response.steer"] = "response.steer"
    previous_response_id: Annotated[str, Meta(description="The response that is steered.")]
