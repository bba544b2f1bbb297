"""Anthropic's messages: what is asked, how it ends, and how errors are told."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from lmserve.errors import (
    BodyTooLarge,
    DeadlineExceeded,
    EngineError,
    EngineUnavailable,
    InvalidField,
    LmserveError,
    ModelNotFound,
    Overloaded,
    Unauthorized,
)
from lmserve.protocol.anthropic import CountTokensRequest, MessagesRequest
from lmserve.protocol.anthropic_errors import error_body
from lmserve.protocol.anthropic_events import closing, delta, opening
from lmserve.protocol.decode import decode
from lmserve.types import Done, Usage

HI: dict[str, Any] = {"role": "user", "content": "hi"}
USAGE = Usage(prompt_tokens=10, completion_tokens=3, cached_tokens=4)


def text(*texts: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text} for text in texts]


def asked(*messages: dict[str, Any], **fields: Any) -> MessagesRequest:
    body = {"messages": list(messages) or [HI], "max_tokens": 5} | fields
    request, unknown = decode(orjson.dumps(body), MessagesRequest)
    assert unknown == []
    return request


def test_a_request() -> None:
    request = asked(
        model="m",
        system="be brief",
        stop_sequences=["a", "b"],
        temperature=0.5,
        top_p=0.9,
        top_k=3,
        metadata={"user_id": "somebody"},
        service_tier="auto",
        priority=2,
        deadline_s=3,
    ).to_generate("owner")
    assert request.messages == [{"role": "system", "content": "be brief"}, HI]
    assert (request.model, request.owner, request.max_tokens) == ("m", "owner", 5)
    assert (request.temperature, request.top_p, request.top_k) == (0.5, 0.9, 3)
    assert (request.stop, request.priority, request.deadline_s) == (("a", "b"), 2, 3)
    assert not request.continues


def test_content_in_blocks() -> None:
    cached = text("be")[0] | {"cache_control": {"type": "ephemeral"}}
    request = asked(
        {"role": "user", "content": text("a", "b")}, system=[cached, *text("brief")]
    ).to_generate()
    assert request.messages == [
        {"role": "system", "content": text("be", "brief")},
        {"role": "user", "content": text("a", "b")},
    ]
    assert asked({"role": "user", "content": text("hi")}).to_generate().messages == [HI]


def test_neighbours_of_one_role_are_one_message() -> None:
    answer = {"role": "assistant", "content": "hello"}
    messages = asked(HI, HI, answer, HI, {"role": "user", "content": text("b")}).to_generate()
    assert messages.messages == [
        {"role": "user", "content": text("hi", "hi")},
        answer,
        {"role": "user", "content": text("hi", "b")},
    ]


def test_an_answer_that_has_begun() -> None:
    request = asked(HI, {"role": "assistant", "content": text("Hel", "lo")}).to_generate()
    assert request.continues
    assert request.messages == [HI, {"role": "assistant", "content": "Hello"}]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [], "system": "x"}, "messages"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        (
            {"messages": [HI, {"role": "user", "content": [{"type": "image", "source": {}}]}]},
            "messages[1].content[0].type",
        ),
        (
            {"messages": [{"role": "user", "content": [*text("x"), {"type": "text"}]}]},
            "messages[0].content[1].text",
        ),
        ({"system": [{"type": "document"}]}, "system[0].type"),
        ({"tools": [{"name": "f", "input_schema": {}}]}, "tools"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
        ({"max_tokens": None}, "max_tokens"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidField) as caught:
        body = orjson.dumps({"messages": [HI], "max_tokens": 5} | fields)
        decode(body, MessagesRequest)[0].to_generate()
    assert caught.value.param == param
    assert param in caught.value.message


def test_what_asks_for_nothing_passes() -> None:
    asked(tools=[], tool_choice={"type": "auto"}, thinking={"type": "disabled"}, metadata=None)


def test_counting_asks_for_no_length() -> None:
    request, _ = decode(orjson.dumps({"messages": [HI], "system": "x"}), CountTokensRequest)
    assert request.to_generate().messages == [{"role": "system", "content": "x"}, HI]
    with pytest.raises(InvalidField, match="max_tokens is required"):
        decode(orjson.dumps({"messages": [HI]}), MessagesRequest)


@pytest.mark.parametrize(
    ("done", "told"),
    [
        (Done("stop", USAGE), ("end_turn", None)),
        (Done("stop", USAGE, "end"), ("stop_sequence", "end")),
        (Done("stop", USAGE, "the template's"), ("end_turn", None)),
        (Done("stop", USAGE, 7), ("end_turn", None)),
        (Done("length", USAGE), ("max_tokens", None)),
        (Done("abort", USAGE), ("pause_turn", None)),
    ],
)
def test_how_an_answer_ends(done: Done, told: tuple[str, str | None]) -> None:
    assert asked(stop_sequences=["end"]).stop_of(done) == told


def test_the_events_to_the_byte() -> None:
    assert opening("msg_1", "m", USAGE).split(b"\n\n") == [
        (
            b'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_1",'
            b'"type":"message","role":"assistant","model":"m","content":[],"stop_reason":null,'
            b'"stop_sequence":null,"usage":{"input_tokens":6,"cache_creation_input_tokens":0,'
            b'"cache_read_input_tokens":4,"output_tokens":3}}}'
        ),
        (
            b'event: content_block_start\ndata: {"type":"content_block_start","index":0,'
            b'"content_block":{"type":"text","text":""}}'
        ),
        b'event: ping\ndata: {"type":"ping"}',
        b"",
    ]
    assert (
        delta('ü"\n')
        == (
            'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
            '"delta":{"type":"text_delta","text":"ü\\"\\n"}}\n\n'
        ).encode()
    )
    assert closing("stop_sequence", "x", USAGE).split(b"\n\n") == [
        b'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}',
        (
            b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":'
            b'"stop_sequence","stop_sequence":"x"},"usage":{"input_tokens":6,'
            b'"cache_creation_input_tokens":0,"cache_read_input_tokens":4,"output_tokens":3}}'
        ),
        b'event: message_stop\ndata: {"type":"message_stop"}',
        b"",
    ]


@pytest.mark.parametrize(
    ("error", "type"),
    [
        (InvalidField("bad", param="x"), "invalid_request_error"),
        (Unauthorized("bad"), "authentication_error"),
        (ModelNotFound("bad"), "not_found_error"),
        (BodyTooLarge("bad"), "request_too_large"),
        (Overloaded("bad"), "overloaded_error"),
        (EngineUnavailable("bad"), "overloaded_error"),
        (DeadlineExceeded("bad"), "timeout_error"),
        (EngineError("bad"), "api_error"),
    ],
)
def test_errors(error: LmserveError, type: str) -> None:
    assert orjson.loads(error_body(error, "id")) == {
        "type": "error",
        "error": {"type": type, "message": "bad"},
        "request_id": "id",
    }
