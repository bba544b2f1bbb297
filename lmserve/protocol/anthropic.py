"""Anthropic's `POST /v1/messages` and `/v1/messages/count_tokens`: requests and whole answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from lmserve.errors import InvalidField
from lmserve.protocol.common import UNSERVED, Deadline, Priority
from lmserve.types import Done, GenerateRequest, Usage

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "pause_turn"]


class InputBlock(Struct, kw_only=True):
    """One part of what is said."""

    type: Annotated[str, Meta(description="`text`; other blocks are not supported yet.")]
    text: str | None = None
    cache_control: Annotated[
        dict[str, Any] | None, Meta(description="Accepted, not used: every prompt is cached.")
    ] = None
    citations: Annotated[Any, Meta(description="Accepted, not used.")] = None


class InputMessage(Struct, kw_only=True):
    """What one side said. Neighbours of one role are read as one message."""

    role: Literal["user", "assistant"]
    content: Annotated[str | list[InputBlock], Meta(description="The text, or its parts.")]


class MessagesPrompt(Struct, kw_only=True):
    """What the model is given."""

    model: Annotated[
        str | None,
        Meta(description="An `id` of `GET /v1/models`. Default: the model that is served."),
    ] = None
    messages: Annotated[
        list[InputMessage],
        Meta(
            description="The conversation, oldest first. Where the assistant's is the last, the "
            "answer goes on from it, and does not repeat it."
        ),
    ]
    system: Annotated[
        str | list[InputBlock] | None, Meta(description="What comes before the conversation.")
    ] = None
    cache_control: Annotated[
        dict[str, Any] | None, Meta(description="Accepted, not used: every prompt is cached.")
    ] = None

    tools: Annotated[
        list[Any] | None, Meta(description="Not served yet.", extra={UNSERVED: ([],)})
    ] = None
    tool_choice: Annotated[
        dict[str, Any] | None,
        Meta(description="Not served yet.", extra={UNSERVED: ({"type": "none"}, {"type": "auto"})}),
    ] = None
    thinking: Annotated[
        dict[str, Any] | None,
        Meta(description="Not served yet.", extra={UNSERVED: ({"type": "disabled"},)}),
    ] = None
    output_config: Annotated[
        dict[str, Any] | None, Meta(description="Not served yet.", extra={UNSERVED: ({},)})
    ] = None
    output_format: Annotated[
        dict[str, Any] | None, Meta(description="Not served yet.", extra={UNSERVED: ()})
    ] = None
    mcp_servers: Annotated[
        list[Any] | None, Meta(description="Not served.", extra={UNSERVED: ([],)})
    ] = None
    container: Annotated[
        str | dict[str, Any] | None, Meta(description="Not served.", extra={UNSERVED: ()})
    ] = None
    context_management: Annotated[
        dict[str, Any] | None, Meta(description="Not served.", extra={UNSERVED: ({},)})
    ] = None

    def to_generate(self, owner: str = "") -> GenerateRequest:
        return GenerateRequest(model=self.model, owner=owner, **self._prompt())

    def _prompt(self) -> dict[str, Any]:
        said = _merged(self.messages)
        if not said:
            raise InvalidField("messages is empty: give at least one message", param="messages")
        continues = said[-1][0] == "assistant"
        if continues and len(said) == 1:
            raise InvalidField(
                "messages has nothing to answer: give a message of the user before the "
                "assistant's, which the answer would go on from",
                param="messages",
            )
        messages = [{"role": role, "content": _content(texts)} for role, texts in said]
        if continues:
            messages[-1]["content"] = "".join(said[-1][1])
        if self.system:
            system = _content(_texts(self.system, "system"))
            messages.insert(0, {"role": "system", "content": system})
        return {"messages": messages, "continues": continues}


def _merged(messages: list[InputMessage]) -> list[tuple[str, list[str]]]:
    """Role and texts, no role twice in a row."""
    said: list[tuple[str, list[str]]] = []
    for index, message in enumerate(messages):
        texts = _texts(message.content, f"messages[{index}].content")
        if said and said[-1][0] == message.role:
            said[-1][1].extend(texts)
        else:
            said.append((message.role, texts))
    return said


def _content(texts: list[str]) -> str | list[dict[str, str]]:
    """As chat templates read it."""
    return texts[0] if len(texts) == 1 else [{"type": "text", "text": text} for text in texts]


def _texts(content: str | list[InputBlock], where: str) -> list[str]:
    if isinstance(content, str):
        return [content]
    return [_text(block, f"{where}[{index}]") for index, block in enumerate(content)]


def _text(block: InputBlock, where: str) -> str:
    if block.type != "text":
        raise InvalidField(
            f"{where}.type is {block.type[:50]!r}, which is not supported yet: send blocks of "
            "type 'text'",
            param=f"{where}.type",
        )
    if block.text is None:
        raise InvalidField(f"{where}.text is required", param=f"{where}.text")
    return block.text


class MessagesMetadata(Struct, kw_only=True):
    user_id: Annotated[str | None, Meta(description="Accepted, not used.")] = None


class MessagesRequest(MessagesPrompt, kw_only=True):
    """A conversation to answer, in Anthropic's words."""

    max_tokens: Annotated[int, Meta(description="Longest answer in tokens.")]
    stop_sequences: Annotated[
        list[str] | None,
        Meta(description="Texts at which the answer ends; left out of the answer."),
    ] = None
    temperature: Annotated[
        float | None,
        Meta(
            description="0 to 1 with Anthropic, to 2 here. 0 always takes the likeliest token. "
            "Default: the model's."
        ),
    ] = None
    top_p: Annotated[
        float | None,
        Meta(description="Above 0, to 1: sample from the likeliest tokens of this total weight."),
    ] = None
    top_k: Annotated[
        int | None, Meta(description="Sample from this many likeliest tokens; 0 or -1: all.")
    ] = None
    stream: Annotated[
        bool | None, Meta(description="Send the answer as server-sent events, as it is made.")
    ] = None
    metadata: MessagesMetadata | None = None
    service_tier: Annotated[str | None, Meta(description="Accepted, not used.")] = None
    priority: Priority = None
    deadline_s: Deadline = None

    def to_generate(self, owner: str = "") -> GenerateRequest:
        return GenerateRequest(
            model=self.model,
            owner=owner,
            max_tokens=self.max_tokens,
            stop=tuple(self.stop_sequences or ()),
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            priority=self.priority or 0,
            deadline_s=self.deadline_s,
            params={"stop": "stop_sequences"},
            **self._prompt(),
        )

    def stop_of(self, done: Done) -> tuple[StopReason, str | None]:
        """Why the answer ended, and at which of the texts. The chat template's own end is the
        model's."""
        if done.finish_reason == "length":
            return "max_tokens", None
        if done.finish_reason == "abort":
            return "pause_turn", None
        if isinstance(done.stop_reason, str) and done.stop_reason in (self.stop_sequences or ()):
            return "stop_sequence", done.stop_reason
        return "end_turn", None


class CountTokensRequest(MessagesPrompt, kw_only=True):
    """A conversation to count."""


class CountTokensResponse(Struct, kw_only=True):
    input_tokens: Annotated[int, Meta(description="Of the prompt as it would be run.")]


class MessagesUsage(Struct, kw_only=True):
    """Tokens of one answer."""

    input_tokens: Annotated[int, Meta(description="Of the prompt, those that were run.")]
    cache_creation_input_tokens: Literal[0] = 0
    cache_read_input_tokens: Annotated[
        int, Meta(description="Of the prompt, those whose KV was found in the prefix tree.")
    ]
    output_tokens: int

    @classmethod
    def of(cls, usage: Usage) -> MessagesUsage:
        return cls(
            input_tokens=usage.prompt_tokens - usage.cached_tokens,
            cache_read_input_tokens=usage.cached_tokens,
            output_tokens=usage.completion_tokens,
        )


class TextBlock(Struct, kw_only=True):
    type: Literal["text"] = "text"
    text: str


class MessagesResponse(Struct, kw_only=True):
    """The assistant's message; whole, without `stream`."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[TextBlock]
    stop_reason: Annotated[
        StopReason | None,
        Meta(
            description="`pause_turn`: it was ended from outside, by its deadline or the server's "
            "end. Send it back as the last message, and it is gone on with."
        ),
    ] = None
    stop_sequence: Annotated[str | None, Meta(description="The text at which it ended.")] = None
    usage: MessagesUsage
