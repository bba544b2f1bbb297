"""An answer told in Ollama's lines, with thinking, calls and log probabilities where there are."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import orjson

from lmserve.messages import TokenLogprob
from lmserve.protocol.logprobs import Vocabulary, chat_logprobs
from lmserve.protocol.ollama.answers import OllamaEncoder, OllamaFunction, OllamaToolCall
from lmserve.protocol.openai.pieces import Call, Pieces
from lmserve.protocol.tools import object_of
from lmserve.protocol.usage import Timed
from lmserve.types import Done, TextDelta


class OllamaTeller:
    """Tells one answer, line by line or whole. Calls are told when all are whole."""

    def __init__(self, encoder: OllamaEncoder, vocabulary: Vocabulary):
        self._encoder = encoder
        self._vocabulary = vocabulary
        self._pieces = Pieces()  # not told yet

    def delta(self, delta: TextDelta) -> bytes:
        """b"" where there is nothing to tell yet."""
        if delta.parts is None and delta.logprobs is None:
            return self._encoder.delta(delta.text) if delta.text else b""
        self._pieces.add(delta)
        pieces = self._pieces
        if not (pieces.content or pieces.reasoning or pieces.logprobs):
            return b""
        self._pieces = Pieces(calls=pieces.calls)
        beside = _thinking(pieces.thought)
        return self._encoder.delta(pieces.text, beside, self._logprobs(pieces.logprobs))

    def last(self, done: Done, times: Timed, total_ns: int) -> bytes:
        """What is left, and the counts."""
        calls = b""
        if self._pieces.calls:
            calls = self._encoder.delta("", _calls(self._pieces.calls))
        return calls + self._encoder.final(_reason(done), done.usage, times, total_ns)

    # --- whole ------------------------------------------------------------------------

    def add(self, delta: TextDelta) -> None:
        """More of what is told at the end."""
        self._pieces.add(delta)

    def whole(self, done: Done, times: Timed, total_ns: int) -> bytes:
        pieces = self._pieces
        return self._encoder.final(
            _reason(done),
            done.usage,
            times,
            total_ns,
            pieces.text,
            _thinking(pieces.thought) + _calls(pieces.calls),
            self._logprobs(pieces.logprobs),
        )

    def _logprobs(self, logprobs: list[TokenLogprob]) -> bytes:
        if not logprobs:
            return b""
        told = chat_logprobs(logprobs, self._vocabulary).content
        return b',"logprobs":' + msgspec.json.encode(told)


def _reason(done: Done) -> str:
    return "stop" if done.finish_reason == "tool_calls" else done.finish_reason


def _thinking(thought: str) -> bytes:
    return b',"thinking":' + orjson.dumps(thought) if thought else b""


def _calls(calls: Mapping[int, Call]) -> bytes:
    if not calls:
        return b""
    told = [_call(index, call) for index, call in calls.items()]
    return b',"tool_calls":' + msgspec.json.encode(told)


def _call(index: int, call: Call) -> OllamaToolCall:
    assert call.begun is not None, "a call begins before its arguments"
    arguments = object_of("".join(call.arguments))
    function = OllamaFunction(index=index, name=call.begun.name, arguments=arguments)
    return OllamaToolCall(id=call.begun.id, function=function)
