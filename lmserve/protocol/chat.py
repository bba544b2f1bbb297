"""`POST /v1/chat/completions`: requests, answers and stream chunks."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
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

    role: Annotated[
        Role, Meta(description="Who speaks; `developer` is `system` to models without that role.")
    ]
    content: Annotated[
        str | list[ContentPart] | None,
        Meta(description="The text, or its parts; null only from an assistant that called tools."),
    ] = None
    name: Annotated[str | None, Meta(description="Given to the chat template.")] = None
    tool_calls: Annotated[
        list[dict[str, Any]] | None, Meta(description="Given to the chat template.")
    ] = None
    tool_call_id: Annotated[str | None, Meta(description="Given to the chat template.")] = None


class ChatFields(SamplingFields, kw_only=True):
    """What every answer to messages may be asked with."""

    max_completion_tokens: Annotated[
        int | None, Meta(description="Longest answer in tokens. Default: what fits the context.")
    ] = None
    max_tokens: Annotated[
        int | None, Meta(description="Older name of `max_completion_tokens`, which wins.")
    ] = None
    chat_template_kwargs: Annotated[
        dict[str, Any] | None, Meta(description="More variables for the chat template.")
    ] = None

    def sampling(self, owner: str) -> dict[str, Any]:
        common = super().sampling(owner) | {"max_tokens": self.max_tokens}
        if self.max_completion_tokens is not None:
            common["max_tokens"] = self.max_completion_tokens
            common["params"]["max_tokens"] = "max_completion_tokens"
        return common


class ChatCompletionRequest(ChatFields, kw_only=True):
    """A conversation to answer."""

    messages: Annotated[
        list[ChatMessage] | str,
        Meta(
            description="The conversation so far, oldest first. A plain string (LMDeploy) is "
            "sent to the model as it is, without the chat template. Empty with `input_ids`."
        ),
    ]
    input_ids: Annotated[
        list[int] | None,
        Meta(description="The prompt in token ids, in place of `messages`, which are empty then."),
    ] = None
    enable_thinking: Annotated[
        bool | None,
        Meta(description="Older way to say `chat_template_kwargs.enable_thinking`, which wins."),
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

    def to_generate(self, owner: str = "") -> GenerateRequest:
        common = self.sampling(owner)
        if self.input_ids is not None:
            if self.messages:
                raise InvalidField(
                    "give messages or input_ids, not both: send messages []", param="input_ids"
                )
            common["params"]["prompt"] = "input_ids"
            return GenerateRequest(token_ids=self.input_ids, **common)
        if isinstance(self.messages, str):
            common["params"]["prompt"] = "messages"
            return GenerateRequest(text=self.messages, **common)
        return GenerateRequest(
            messages=[plain_message(message) for message in self.messages],
            chat_template_kwargs=self._template_kwargs(),
            **common,
        )

    def _template_kwargs(self) -> dict[str, Any]:
        given = self.chat_template_kwargs or {}
        if self.enable_thinking is None:
            return given
        return {"enable_thinking": self.enable_thinking} | given


def plain_message(message: ChatMessage) -> dict[str, Any]:
    """As it was sent, without what was null; `lmserve.text.chat` makes it fit the template."""
    plain = _given(message)
    if isinstance(message.content, list):
        plain["content"] = [_given(part) for part in message.content]
    return plain


def _given(struct: Struct) -> dict[str, Any]:
    return {k: value for k, value in msgspec.structs.asdict(struct).items() if value is not None}


class ChatAnswer(Struct, kw_only=True):
    """The assistant's message."""

    role: Literal["assistant"] = "assistant"
    content: str | None


class ChatCompletionResponseChoice(Struct, kw_only=True):
    index: int
    message: ChatAnswer
    logprobs: dict[str, Any] | None = None
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
    logprobs: dict[str, Any] | None = None
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
