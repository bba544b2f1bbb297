"""Events to bytes: the hot path of a stream.

What never changes during a request is serialised once, when it starts; a chunk costs one
`orjson.dumps` of its text and one concatenation.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import orjson

from lmserve.protocol.chat import (
    ChatAnswer,
    ChatCompletionResponse,
    ChatCompletionResponseChoice,
)
from lmserve.protocol.common import UsageInfo
from lmserve.protocol.completions import CompletionResponse, CompletionResponseChoice
from lmserve.types import FinishReason, Usage

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Head:
    """What every chunk of one answer repeats."""

    id: str
    created: int
    model: str


class _Encoder:
    """The pre-serialised envelope; a chunk is head + choice + tail."""

    __slots__ = ("_head", "_tail")

    def __init__(self, head: Head, object_: str, include_usage: bool):
        self._head = b'data: {"id":%b,"object":"%b","created":%d,"model":%b,"choices":[' % (
            orjson.dumps(head.id),
            object_.encode(),
            head.created,
            orjson.dumps(head.model),
        )
        self._tail = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"

    def usage(self, *usages: Usage) -> bytes:
        """The chunk asked for by `stream_options.include_usage`."""
        return self._head + b'],"usage":' + msgspec.json.encode(UsageInfo.of(*usages)) + b"}\n\n"


class ChatEncoder(_Encoder):
    """Chunks of one streamed chat answer."""

    __slots__ = ("_delta_head", "_delta_tail")

    def __init__(self, head: Head, *, include_usage: bool):
        super().__init__(head, "chat.completion.chunk", include_usage)
        self._delta_head = self._head + b'{"index":0,"delta":{"content":'
        self._delta_tail = b'},"logprobs":null,"finish_reason":null}' + self._tail

    def first(self) -> bytes:
        return (
            self._head + b'{"index":0,"delta":{"role":"assistant","content":""},'
            b'"logprobs":null,"finish_reason":null}' + self._tail
        )

    def delta(self, text: str) -> bytes:
        return self._delta_head + orjson.dumps(text) + self._delta_tail

    def final(self, reason: FinishReason) -> bytes:
        return (
            self._head
            + b'{"index":0,"delta":{},"logprobs":null,"finish_reason":"%b"}' % reason.encode()
            + self._tail
        )


class CompletionEncoder(_Encoder):
    """Chunks of one call's streamed continuations; `index` says of which prompt."""

    __slots__ = ("_delta_tail",)

    def __init__(self, head: Head, *, include_usage: bool):
        super().__init__(head, "text_completion", include_usage)
        self._delta_tail = b',"logprobs":null,"finish_reason":null}' + self._tail

    def delta(self, index: int, text: str) -> bytes:
        choice = b'{"index":%d,"text":%b' % (index, orjson.dumps(text))
        return self._head + choice + self._delta_tail

    def final(self, index: int, reason: FinishReason) -> bytes:
        choice = b'{"index":%d,"text":"","logprobs":null,"finish_reason":"%b"}' % (
            index,
            reason.encode(),
        )
        return self._head + choice + self._tail


def chat_response(head: Head, text: str, reason: FinishReason, usage: Usage) -> bytes:
    """The body of a chat answer that is not streamed."""
    choice = ChatCompletionResponseChoice(
        index=0, message=ChatAnswer(content=text), finish_reason=reason
    )
    return msgspec.json.encode(
        ChatCompletionResponse(
            id=head.id,
            created=head.created,
            model=head.model,
            choices=[choice],
            usage=UsageInfo.of(usage),
        )
    )


def completion_response(
    head: Head, answers: list[tuple[str, FinishReason]], usages: list[Usage]
) -> bytes:
    """The body of continuations that are not streamed, in the order of their prompts."""
    choices = [
        CompletionResponseChoice(index=i, text=text, finish_reason=reason)
        for i, (text, reason) in enumerate(answers)
    ]
    return msgspec.json.encode(
        CompletionResponse(
            id=head.id,
            created=head.created,
            model=head.model,
            choices=choices,
            usage=UsageInfo.of(*usages),
        )
    )
