"""Hand-built bytes hold to the structs that document them."""

from __future__ import annotations

from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmserve.errors import InvalidField, Overloaded
from lmserve.protocol import encode
from lmserve.protocol.errors import ErrorResponse, error_body, error_event
from lmserve.protocol.openai.chat_answers import ChatCompletionStreamResponse
from lmserve.protocol.openai.completion_answers import CompletionStreamResponse
from lmserve.protocol.usage import UsageInfo
from lmserve.types import Done, TextDelta, Usage

HEAD = encode.Head('id-"1"', 7, "a/b ü")
USAGE = Usage(prompt_tokens=5, completion_tokens=3, cached_tokens=2)


def event(data: bytes, kind: type[Any]) -> dict[str, Any]:
    """The event's JSON, which must fit the struct, whole."""
    assert data.startswith(b"data: ") and data.endswith(b"\n\n") and data.count(b"\n") == 2
    raw = orjson.loads(data[6:])
    decoded = msgspec.convert(raw, kind)
    for name in set(raw) - set(kind.__struct_fields__):
        raise AssertionError(f"{name} is not in {kind.__name__}")
    assert decoded.id == HEAD.id and decoded.model == HEAD.model and decoded.created == 7
    return dict(raw)


@pytest.mark.parametrize("include_usage", [False, True])
def test_chat_chunks(include_usage: bool) -> None:
    encoder = encode.ChatEncoder(HEAD, include_usage=include_usage)
    kind = ChatCompletionStreamResponse
    first, delta, final = (
        event(data, kind) for data in (encoder.first(), encoder.delta("x"), encoder.final("stop"))
    )
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert delta["choices"][0] == {
        "index": 0,
        "delta": {"content": "x"},
        "logprobs": None,
        "finish_reason": None,
    }
    assert final["choices"][0]["delta"] == {}
    assert final["choices"][0]["finish_reason"] == "stop"
    for chunk in (first, delta, final):
        assert ("usage" in chunk) == include_usage
    usage = event(encoder.usage(UsageInfo.of(USAGE)), kind)
    assert usage["choices"] == []
    assert usage["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 3,
        "total_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 2},
    }


@given(st.text())
def test_any_text_survives(text: str) -> None:
    chat = encode.ChatEncoder(HEAD, include_usage=False).delta(text)
    assert event(chat, ChatCompletionStreamResponse)["choices"][0]["delta"]["content"] == text
    plain = encode.CompletionEncoder(HEAD, include_usage=True).delta(3, TextDelta(text, []))
    assert event(plain, CompletionStreamResponse)["choices"][0] == {
        "index": 3,
        "text": text,
        "logprobs": None,
        "finish_reason": None,
    }


def test_completion_chunks() -> None:
    encoder = encode.CompletionEncoder(HEAD, include_usage=False)
    final = event(encoder.final(1, Done("length", USAGE)), CompletionStreamResponse)
    assert final["choices"][0] == {
        "index": 1,
        "text": "",
        "logprobs": None,
        "finish_reason": "length",
    }
    usage = event(encoder.usage(UsageInfo.of(USAGE, USAGE)), CompletionStreamResponse)
    assert usage["usage"]["total_tokens"] == 16


def test_a_prompt_of_several_answers_is_counted_once() -> None:
    first = Usage(prompt_tokens=5, completion_tokens=3, cached_tokens=1, reasoning_tokens=2)
    second = Usage(prompt_tokens=5, completion_tokens=4, cached_tokens=5)
    usage = UsageInfo.of(first, second, num_prompts=1)
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (5, 7, 12)
    assert usage.prompt_tokens_details.cached_tokens == 1
    assert msgspec.to_builtins(usage)["completion_tokens_details"] == {"reasoning_tokens": 2}
    assert "completion_tokens_details" not in msgspec.to_builtins(UsageInfo.of(second))
    assert UsageInfo.of(first, second).prompt_tokens == 10


def test_errors_speak_both_dialects() -> None:
    error = InvalidField("n is wrong", param="n")
    body = msgspec.json.decode(error_body(error), type=ErrorResponse)
    assert body.error.code == "invalid_value"
    assert (body.message, body.type, body.param, body.code, body.object) == (
        "n is wrong",
        "invalid_request_error",
        "n",
        400,
        "error",
    )
    data = orjson.loads(error_event(Overloaded("later"))[6:])
    assert data == {
        "error": {
            "message": "later",
            "type": "overloaded_error",
            "param": None,
            "code": "overloaded",
        }
    }
