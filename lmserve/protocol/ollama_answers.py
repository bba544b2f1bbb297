"""What Ollama's `/api/chat` and `/api/generate` answer: one JSON object a line."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal

import orjson
from msgspec import Meta, Struct

from lmserve.errors import LmserveError
from lmserve.types import Usage

NDJSON = "application/x-ndjson"


class OllamaAnswer(Struct, kw_only=True):
    """The assistant's message, or what a line adds to it."""

    role: Literal["assistant"] = "assistant"
    content: str


class _Answer(Struct, kw_only=True):
    """A line of an answer, or all of it; the last line has the counts."""

    model: str
    created_at: Annotated[str, Meta(description="RFC 3339.")]
    done: bool
    done_reason: Annotated[
        Literal["stop", "length", "abort", "load"] | None,
        Meta(description="`load`: nothing was asked; the model is there."),
    ] = None
    total_duration: Annotated[int | None, Meta(description="Nanoseconds, as the others.")] = None
    load_duration: int | None = None
    prompt_eval_count: Annotated[int | None, Meta(description="Tokens of the prompt.")] = None
    prompt_eval_duration: Annotated[
        int | None, Meta(description="To the first token, waiting included.")
    ] = None
    eval_count: Annotated[int | None, Meta(description="Tokens of the answer.")] = None
    eval_duration: int | None = None


class OllamaChatResponse(_Answer, kw_only=True):
    message: OllamaAnswer


class OllamaGenerateResponse(_Answer, kw_only=True):
    response: str


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
        self._before, self._after = b'","response":', b',"done":'
        if kind == "chat":
            self._before, self._after = b'","message":{"role":"assistant","content":', b'},"done":'

    def delta(self, text: str) -> bytes:
        return self._begin(text) + b"false}\n"

    def final(
        self, text: str, reason: str, usage: Usage, total_ns: int, first_ns: int | None
    ) -> bytes:
        """The last line or, without `stream`, the only one."""
        first_ns = total_ns if first_ns is None else min(first_ns, total_ns)
        counts = {
            "done_reason": reason,
            "total_duration": total_ns,
            "load_duration": 0,
            "prompt_eval_count": usage.prompt_tokens,
            "prompt_eval_duration": first_ns,
            "eval_count": usage.completion_tokens,
            "eval_duration": total_ns - first_ns,
        }
        return self._begin(text) + b"true," + orjson.dumps(counts)[1:] + b"\n"

    def load(self) -> bytes:
        return self._begin("") + b'true,"done_reason":"load"}\n'

    def _begin(self, text: str) -> bytes:
        now = datetime.now(UTC).isoformat(timespec="microseconds")[:26].encode()
        return b"%b%bZ%b%b%b" % (self._head, now, self._before, orjson.dumps(text), self._after)
