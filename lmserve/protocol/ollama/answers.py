"""What Ollama's `/api/chat` and `/api/generate` answer: one JSON object a line."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import orjson
from msgspec import Meta, Struct

from lmserve.errors import LmserveError
from lmserve.protocol.logprobs import ChatTokenLogprob
from lmserve.protocol.usage import Timed
from lmserve.types import Usage

NDJSON = "application/x-ndjson"


class OllamaFunction(Struct, kw_only=True):
    index: Annotated[int | None, Meta(description="Of the answer's calls.")] = None
    name: str
    arguments: Annotated[
        dict[str, Any],
        Meta(
            description="What the model wrote that is no JSON object is the text under "
            "`INVALID_JSON`."
        ),
    ]


class OllamaToolCall(Struct, kw_only=True):
    """A function that the model calls."""

    id: str | None = None
    function: OllamaFunction


class OllamaAnswer(Struct, kw_only=True):
    """The assistant's message, or what a line adds to it."""

    role: Literal["assistant"] = "assistant"
    content: str
    thinking: Annotated[
        str | None, Meta(description="What it thinks before, where the model does.")
    ] = None
    tool_calls: Annotated[
        list[OllamaToolCall] | None, Meta(description="Whole, in the line before the last.")
    ] = None


class _Answer(Struct, kw_only=True):
    """A line of an answer, or all of it; the last line has the counts."""

    model: str
    created_at: Annotated[str, Meta(description="RFC 3339.")]
    logprobs: Annotated[
        list[ChatTokenLogprob] | None, Meta(description="Only with `logprobs`.")
    ] = None
    done: bool
    done_reason: Annotated[
        Literal["stop", "length", "abort", "load"] | None,
        Meta(description="`load`: nothing was asked; the model is there."),
    ] = None
    total_duration: Annotated[
        int | None, Meta(description="From its arrival on. Nanoseconds, as the others.")
    ] = None
    load_duration: int | None = None
    prompt_eval_count: Annotated[int | None, Meta(description="Tokens of the prompt.")] = None
    prompt_eval_duration: Annotated[
        int | None, Meta(description="From its first step to the first token.")
    ] = None
    eval_count: Annotated[int | None, Meta(description="Tokens of the answer.")] = None
    eval_duration: Annotated[int | None, Meta(description="From the first token to the last.")] = (
        None
    )


class OllamaChatResponse(_Answer, kw_only=True):
    message: OllamaAnswer


class OllamaGenerateResponse(_Answer, kw_only=True):
    response: str
    thinking: Annotated[
        str | None, Meta(description="What it thinks before, where the model does.")
    ] = None


class OllamaErrorResponse(Struct, kw_only=True):
    """The body of every answer that is not 2xx, and the last line of one that fails."""

    error: Annotated[str, Meta(description="What is wrong and what to do.")]


def error_body(error: LmserveError, _request_id: str = "") -> bytes:
    return orjson.dumps({"error": error.message})


class OllamaEncoder:
    """Lines of one answer: what they repeat is serialised once."""

    __slots__ = ("_after", "_before", "_head")

    def __init__(self, model: str, kind: Literal["chat", "generate"]):
        self._head = b'{"model":%b,"created_at":"' % orjson.dumps(model)
        self._before, self._after = b'","response":', b""
        if kind == "chat":
            self._before, self._after = b'","message":{"role":"assistant","content":', b"}"

    def delta(self, text: str, beside: bytes = b"", after: bytes = b"") -> bytes:
        """`beside`: more fields of the message, if it is one; `after`: of the line."""
        return self._begin(text, beside, after) + b"false}\n"

    def final(
        self,
        reason: str,
        usage: Usage,
        times: Timed,
        total_ns: int,
        text: str = "",
        beside: bytes = b"",
        after: bytes = b"",
    ) -> bytes:
        """The last line or, without `stream`, the only one."""
        counts = {
            "done_reason": reason,
            "total_duration": total_ns,
            "load_duration": 0,
            "prompt_eval_count": usage.prompt_tokens,
            "prompt_eval_duration": _ns(times.prompt_s),
            "eval_count": usage.completion_tokens,
            "eval_duration": _ns(times.answer_s),
        }
        return self._begin(text, beside, after) + b"true," + orjson.dumps(counts)[1:] + b"\n"

    def load(self) -> bytes:
        return self._begin("") + b'true,"done_reason":"load"}\n'

    def _begin(self, text: str, beside: bytes = b"", after: bytes = b"") -> bytes:
        now = datetime.now(UTC).isoformat(timespec="microseconds")[:26].encode()
        said = orjson.dumps(text) + beside + self._after + after
        return b'%b%bZ%b%b,"done":' % (self._head, now, self._before, said)


def _ns(seconds: float) -> int:
    """At least 1: clients divide by it."""
    return max(1, int(seconds * 1e9))
