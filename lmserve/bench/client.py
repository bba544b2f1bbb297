"""One streamed request to an OpenAI-compatible server, and when each of its pieces came."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson

CHAT, COMPLETIONS = "chat", "completions"
TEXT = ("content", "reasoning_content", "reasoning")  # of a chat's delta


@dataclass(frozen=True, slots=True)
class Manner:
    """How requests are written."""

    model: str = ""  # none: the first that the server lists
    endpoint: str = CHAT
    ignore_eos: bool = True
    temperature: float = 0.0
    extra: dict[str, Any] = field(default_factory=dict)  # more fields of every body


@dataclass(frozen=True, slots=True)
class Prompt:
    prefix: str  # the same for all requests of a run; may be empty
    text: str


@dataclass(slots=True)
class Answer:
    """Times are of `time.perf_counter`, in seconds."""

    began: float
    first: float = 0.0  # when the first text came; 0: none did
    last: float = 0.0  # when the latest did
    ended: float = 0.0
    gaps: list[float] = field(default_factory=list)  # between pieces with text
    num_pieces: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0  # as the server counts them, or the number of pieces
    counted: bool = False  # by the server
    finished: bool = False  # the server said that it was
    error: str = ""  # why it failed, if it did

    @property
    def ttft_s(self) -> float:
        return self.first - self.began

    @property
    def e2e_s(self) -> float:
        return self.ended - self.began

    @property
    def tpot_s(self) -> float:
        """Time per output token after the first: fair where a piece holds several."""
        return (self.last - self.first) / max(1, self.output_tokens - 1)


class Client:
    """Sends to one server."""

    def __init__(self, session: aiohttp.ClientSession, url: str, manner: Manner):
        self._session = session
        self._manner = manner
        path = "chat/completions" if manner.endpoint == CHAT else "completions"
        self._url = f"{url}/v1/{path}"

    async def ask(self, prompt: Prompt, max_tokens: int) -> Answer:
        """Never raises for what a server does."""
        body = orjson.dumps(self._body(prompt, max_tokens))
        answer = Answer(began=time.perf_counter())
        try:
            async with self._session.post(self._url, data=body) as response:
                if response.status == 200:
                    await _read(response, answer)
                else:
                    answer.error = f"HTTP {response.status}: {_short(await response.text())}"
        except TimeoutError:
            answer.error = "timeout"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            answer.error = _short(f"{type(error).__name__}: {error}")
        answer.ended = time.perf_counter()
        if not answer.counted:
            answer.output_tokens = answer.num_pieces
        if not answer.error and not answer.output_tokens:
            answer.error = "empty answer"
        return answer

    def _body(self, prompt: Prompt, max_tokens: int) -> dict[str, Any]:
        manner = self._manner
        body: dict[str, Any] = {
            "model": manner.model,
            "max_tokens": max_tokens,
            "temperature": manner.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if manner.ignore_eos:
            body["ignore_eos"] = True
        if manner.endpoint == CHAT:
            system = [{"role": "system", "content": prompt.prefix}] if prompt.prefix else []
            body["messages"] = [*system, {"role": "user", "content": prompt.text}]
        else:
            body["prompt"] = f"{prompt.prefix} {prompt.text}" if prompt.prefix else prompt.text
        return body | manner.extra


async def _read(response: aiohttp.ClientResponse, answer: Answer) -> None:
    """Server-sent events to their end; an answer that breaks off has an error."""
    rest = b""
    async for data in response.content.iter_any():
        now = time.perf_counter()
        *lines, rest = (rest + data).split(b"\n")
        for event in _events(lines):
            if event.get("error"):
                answer.error = _short(f"error in the stream: {event['error']}")
                return
            _note(event, now, answer)
    if not answer.finished:
        answer.error = "the stream broke off"


def _events(lines: list[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        data = line[5:].strip()
        if line.startswith(b"data:") and data != b"[DONE]":
            event = orjson.loads(data)
            if not isinstance(event, dict):
                raise ValueError(f"no event: {data[:80]!r}")
            yield event


def _note(event: dict[str, Any], now: float, answer: Answer) -> None:
    usage = event.get("usage")
    if usage and usage.get("completion_tokens") is not None:
        answer.counted = answer.finished = True
        answer.output_tokens = usage["completion_tokens"]
        answer.prompt_tokens = usage.get("prompt_tokens") or 0
        details = usage.get("prompt_tokens_details") or {}
        answer.cached_tokens = details.get("cached_tokens") or 0
    for choice in event.get("choices") or ():
        answer.finished |= choice.get("finish_reason") is not None
        delta = choice.get("delta") or {}
        if choice.get("text") or any(delta.get(name) for name in TEXT):
            answer.num_pieces += 1
            if answer.last:
                answer.gaps.append(now - answer.last)
            else:
                answer.first = now
            answer.last = now


def _short(text: str) -> str:
    return " ".join(text.split())[:200]
