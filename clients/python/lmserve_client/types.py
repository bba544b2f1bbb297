"""What calls take and yield. Dicts stay dicts, as they came from the server: these types only
name their keys. A key that a server leaves out is absent, not None."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypedDict, Union

Message = Mapping[str, Any]  # {"role": ..., "content": ...}
Messages = Union[str, Sequence[Message]]
Stop = Union[str, Sequence[str], None]
# What one line of a server holds, before a call says what it means.
JSONObject = dict[str, Any]


class ChatMessage(TypedDict, total=False):
    """A whole message, or what a chunk adds to it."""

    role: str
    content: str | None
    reasoning_content: str | None
    tool_calls: list[JSONObject] | None


class ChatChoice(TypedDict, total=False):
    """Has `message`, or, in a chunk of a stream, `delta`."""

    index: int
    message: ChatMessage
    delta: ChatMessage
    finish_reason: str | None
    logprobs: JSONObject | None


class Usage(TypedDict, total=False):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int] | None


class ChatCompletion(TypedDict, total=False):
    """A whole answer, or one chunk of a streamed one."""

    id: str
    object: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage | None


class CompletionChoice(TypedDict, total=False):
    index: int
    text: str
    finish_reason: str | None
    logprobs: JSONObject | None


class Completion(TypedDict, total=False):
    """A whole answer, or one chunk of a streamed one."""

    id: str
    object: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None


class _InteractivePart(TypedDict):
    text: str  # the whole answer; streamed: what is new
    tokens: int  # generated so far
    finish_reason: str | None


class InteractiveAnswer(_InteractivePart, total=False):
    """One line of `/v1/chat/interactive`. The keys below came with LMDeploy 0.2.5."""

    input_tokens: int  # of this turn's prompt
    history_tokens: int  # in the session before this turn


class ChatPart(NamedTuple):
    """What `chat` yields: also a plain tuple of three."""

    text: str
    tokens: int
    finish_reason: str | None


class Encoding(NamedTuple):
    """One text in tokens: also a plain tuple of two."""

    input_ids: list[int]
    length: int


class EncodingBatch(NamedTuple):
    """Some texts in tokens: also a plain tuple of two."""

    input_ids: list[list[int]]
    length: list[int]
