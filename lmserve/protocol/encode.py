"""Events to bytes: the hot path of a stream.

What never changes during a request is serialised once, when it starts; a chunk costs one
`orjson.dumps` of its text and one concatenation.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import orjson

from lmserve.protocol.usage import UsageInfo
from lmserve.types import Done, FinishReason, TextDelta

DONE = b"data: [DONE]\n\n"

# Readers of events skip it. No blank line follows, as that would end an event, an empty one where
# events have ids: official clients cannot read it.
COMMENT = b": keep-alive\n"


@dataclass(frozen=True, slots=True)
class Head:
    """What every chunk of one answer repeats."""

    id: str
    created: int
    model: str


# With usage, and without; one object for all answers, which so is in the processor's cache.
_TAILS = (b"]}\n\n", b'],"usage":null}\n\n')
_DELTA_TAILS = tuple(b'},"logprobs":null,"finish_reason":null}' + tail for tail in _TAILS)


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
        self._tail = _TAILS[include_usage]

    def usage(self, usage: UsageInfo) -> bytes:
        """The chunk asked for by `stream_options.include_usage`."""
        return self._head + b'],"usage":' + msgspec.json.encode(usage) + b"}\n\n"


class ChatEncoder(_Encoder):
    """Chunks of one streamed chat answer."""

    __slots__ = ("_delta_head", "_delta_tail")

    def __init__(self, head: Head, *, include_usage: bool):
        super().__init__(head, "chat.completion.chunk", include_usage)
        self._delta_head = self._head + b'{"index":0,"delta":{"content":'
        self._delta_tail = _DELTA_TAILS[include_usage]

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

    def delta(self, index: int, delta: TextDelta) -> bytes:
        choice = b'{"index":%d,"text":%b' % (index, orjson.dumps(delta.text))
        return self._head + choice + self._delta_tail

    def final(self, index: int, done: Done) -> bytes:
        choice = b'{"index":%d,"text":"","logprobs":null,"finish_reason":"%b"}' % (
            index,
            done.finish_reason.encode(),
        )
        return self._head + choice + self._tail


def event(chunk: msgspec.Struct) -> bytes:
    """Of any chunk, at leisure."""
    return b"data: %b\n\n" % msgspec.json.encode(chunk)
