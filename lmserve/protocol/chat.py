"""`POST /v1/chat/completions`: requests, answers and stream chunks."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from lmserve.errors import InvalidField
from lmserve.protocol.common import UNSERVED, SamplingFields, UsageInfo
from lmserve.types import FinishReason, GenerateRequest

Role = Literal["system", "developer", "user", "assistant", "tool"]


class ContentPart(Struct, kw_only=True):
    """One part of a message's content."""

    type: Annotated[str, Meta(description="`text`: the models served here read text only.")]
    text: str | None = None


class ChatMessage(Struct, kw_only=True):
    """One message of a conversation."""

    role: Annotated[Role, Meta(description="Who speaks; `developer` is read as `system`.")]
    content: Annotated[
        str | list[ContentPart] | None,
        Meta(description="The text, or its parts; null only from an assistant that called tools."),
    ] = None
    name: Annotated[str | None, Meta(description="Given to the chat template.")] = None
    tool_calls: Annotated[
        list[dict[str, Any]] | None, Meta(description="Given to the chat template.")
    ] = None
    tool_call_id: Annotated[str | None, Meta(description="Given to the chat template.")] = None


class ResponseFormat(Struct, kw_only=True):
    """The form of the answer."""

    type: Annotated[str, Meta(description="`text`; other forms are not served yet.")]


class ChatCompletionRequest(SamplingFields, kw_only=True):
    """A conversation to answer."""

    messages: Annotated[
        list[ChatMessage] | str,
        Meta(
            description="The conversation so far, oldest first. A plain string (LMDeploy) is "
            "sent to the model as it is, without the chat template."
        ),
    ]
    max_completion_tokens: Annotated[
        int | None, Meta(description="Longest answer in tokens. Default: what fits the context.")
    ] = None
    max_tokens: Annotated[
        int | None, Meta(description="Older name of `max_completion_tokens`, which wins.")
    ] = None
    chat_template_kwargs: Annotated[
        dict[str, Any] | None, Meta(description="More variables for the chat template.")
    ] = None
    metadata: Annotated[dict[str, Any] | None, Meta(description="Accepted, not used.")] = None

    tools: Annotated[
        list[Any] | None, Meta(description="Not served yet.", extra={UNSERVED: ([],)})
    ] = None
    tool_choice: Annotated[
        str | dict[str, Any] | None,
        Meta(description="Not served yet.", extra={UNSERVED: ("none", "auto")}),
    ] = None
    functions: Annotated[
        list[Any] | None, Meta(description="Not served yet.", extra={UNSERVED: ([],)})
    ] = None
    function_call: Annotated[
        str | dict[str, Any] | None,
        Meta(description="Not served yet.", extra={UNSERVED: ("none", "auto")}),
    ] = None
    response_format: Annotated[
        ResponseFormat | None,
        Meta(
            description="`text` only; others are not served yet.",
            extra={UNSERVED: (ResponseFormat(type="text"),)},
        ),
    ] = None
    logprobs: Annotated[
        bool | None, Meta(description="Not served yet.", extra={UNSERVED: (False,)})
    ] = None
    top_logprobs: Annotated[
        int | None, Meta(description="Not served yet.", extra={UNSERVED: (0,)})
    ] = None
    modalities: Annotated[
        list[str] | None,
        Meta(description="Text only.", extra={UNSERVED: ([], ["text"])}),
    ] = None
    chat_template: Annotated[
        str | None, Meta(description="Not served.", extra={UNSERVED: ("",)})
    ] = None
    continue_final_message: Annotated[
        bool | None, Meta(description="Not served yet.", extra={UNSERVED: (False,)})
    ] = None

    def to_generate(self) -> GenerateRequest:
        limit = self.max_completion_tokens
        common = self.sampling() | {"max_tokens": self.max_tokens if limit is None else limit}
        if isinstance(self.messages, str):
            return GenerateRequest(text=self.messages, **common)
        if not self.messages:
            raise InvalidField("messages is empty: send at least one message", param="messages")
        return GenerateRequest(
            messages=[template_message(i, message) for i, message in enumerate(self.messages)],
            chat_template_kwargs=self.chat_template_kwargs or {},
            **common,
        )


def template_message(index: int, message: ChatMessage) -> dict[str, Any]:
    """The message as chat templates read it: content is always text."""
    rendered: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": _text(f"messages[{index}].content", message),
    }
    for name in ("name", "tool_calls", "tool_call_id"):
        value = getattr(message, name)
        if value is not None:
            rendered[name] = value
    return rendered


def _text(param: str, message: ChatMessage) -> str:
    content = message.content
    if isinstance(content, str):
        return content
    if content is None:
        if message.role != "assistant":
            raise InvalidField(f"{param} is required for role {message.role}", param=param)
        return ""
    texts = []
    for i, part in enumerate(content):
        if part.type != "text":
            raise InvalidField(
                f"{param}[{i}].type {part.type[:40]!r} is not supported: this model reads text",
                param=f"{param}[{i}].type",
            )
        if part.text is None:
            raise InvalidField(f"{param}[{i}].text is required", param=f"{param}[{i}].text")
        texts.append(part.text)
    return "\n".join(texts)


class ChatAnswer(Struct, kw_only=True):
    """The assistant's message."""

    role: Literal["assistant"] = "assistant"
    content: str | None


class ChatCompletionResponseChoice(Struct, kw_only=True):
    index: int
    message: ChatAnswer
    logprobs: None = None
    finish_reason: FinishReason


class ChatCompletionResponse(Struct, kw_only=True):
    """The whole answer, without `stream`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: Annotated[int, Meta(description="Unix time in seconds.")]
    model: str
    choices: list[ChatCompletionResponseChoice]
    usage: UsageInfo


class DeltaMessage(Struct, kw_only=True, omit_defaults=True):
    """What a chunk adds to the answer."""

    role: Annotated[Literal["assistant"] | None, Meta(description="In the first chunk only.")] = (
        None
    )
    content: str | None = None


class ChatCompletionResponseStreamChoice(Struct, kw_only=True):
    index: int
    delta: DeltaMessage
    logprobs: None = None
    finish_reason: FinishReason | None = None


class ChatCompletionStreamResponse(Struct, kw_only=True):
    """One chunk of a streamed answer."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: Annotated[
        list[ChatCompletionResponseStreamChoice],
        Meta(description="Empty in the chunk that holds the usage."),
    ]
    usage: Annotated[
        UsageInfo | None, Meta(description="Only with `stream_options.include_usage`.")
    ] = None
