"""Anthropic's messages: what is asked, how it ends, and how errors are told."""

from __future__ import annotations

from typing import Any

import msgspec
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
from lmserve.protocol.anthropic.answers import Blocks
from lmserve.protocol.anthropic.errors import error_body
from lmserve.protocol.anthropic.events import MessageTeller
from lmserve.protocol.anthropic.requests import CountTokensRequest, MessagesRequest
from lmserve.protocol.decode import decode
from lmserve.types import (
    CallArguments,
    CallBegun,
    Content,
    Done,
    Part,
    Reasoning,
    Structure,
    TextDelta,
    ToolChoice,
    Usage,
)

HI: dict[str, Any] = {"role": "user", "content": "hi"}
USAGE = Usage(prompt_tokens=10, completion_tokens=3, cached_tokens=4)


def text(*texts: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text} for text in texts]


def said(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": [*blocks]}


def told(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": [*blocks]}


FORM = {"type": "json_schema", "schema": {"type": "object"}}
CALL = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"x": [1]}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "one"}


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
        ({"messages": [{"role": "critic", "content": "x"}]}, "messages[0].role"),
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
        ({"tools": [{"name": "web", "type": "web_search_20250305"}]}, "tools[0].type"),
        ({"tools": [{"input_schema": {}}]}, "tools[0].name"),
        ({"tool_choice": {"type": "some"}}, "tool_choice.type"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"thinking": {"type": "deep"}}, "thinking.type"),
        ({"thinking": {"type": "adaptive", "budget_tokens": 9}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "enabled", "display": "x"}}, "thinking.display"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
        ({"output_format": {"type": "json_schema"}}, "output_format.schema"),
        ({"output_format": FORM, "output_config": {"format": FORM}}, "output_format"),
        ({"messages": [HI, said({"type": "thinking", "thinking": "x"})]}, "messages[1].content[0]"),
        ({"messages": [HI, said(CALL)]}, "messages[1].content[0]"),
        ({"messages": [HI, said(CALL | {"name": None}), HI]}, "messages[1].content[0].name"),
        ({"messages": [HI, said(CALL | {"id": None}), HI]}, "messages[1].content[0].id"),
        ({"messages": [HI, said(CALL | {"input": "{}"}), HI]}, "messages[1].content[0].input"),
        ({"messages": [told(CALL)]}, "messages[0].content[0].type"),
        ({"messages": [told({"type": "tool_result"})]}, "messages[0].content[0].tool_use_id"),
        (
            {"messages": [told({**RESULT, "content": [{"type": "image"}]})]},
            "messages[0].content[0].content[0].type",
        ),
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
        (Done("tool_calls", USAGE), ("tool_use", None)),
    ],
)
def test_how_an_answer_ends(done: Done, told: tuple[str, str | None]) -> None:
    assert asked(stop_sequences=["end"]).stop_of(done) == told


def teller(**options: Any) -> MessageTeller:
    return MessageTeller("msg_1", "m", lambda: USAGE, **options)


def test_the_events_to_the_byte() -> None:
    telling = teller()
    *opening, first, rest = telling.delta(TextDelta('ü"\n', [1])).split(b"\n\n")
    assert rest == b""
    assert opening == [
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
    ]
    assert (
        first
        == (
            'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
            '"delta":{"type":"text_delta","text":"ü\\"\\n"}}'
        ).encode()
    )
    assert telling.delta(TextDelta('ü"\n', [1])) == first + b"\n\n"
    assert telling.final("stop_sequence", "x", USAGE).split(b"\n\n") == [
        b'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}',
        (
            b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":'
            b'"stop_sequence","stop_sequence":"x"},"usage":{"input_tokens":6,'
            b'"cache_creation_input_tokens":0,"cache_read_input_tokens":4,"output_tokens":3}}'
        ),
        b'event: message_stop\ndata: {"type":"message_stop"}',
        b"",
    ]


def test_calls_and_their_results() -> None:
    messages = asked(
        HI,
        said({"type": "thinking", "thinking": "hm", "signature": "s"}, *text("Wait."), CALL),
        told(RESULT, {**RESULT, "content": text("a", "b"), "is_error": True}, *text("Go on.")),
        told({"type": "tool_result", "tool_use_id": "toolu_2"}),
    ).to_generate()
    assert messages.messages == [
        HI,
        {
            "role": "assistant",
            "content": "Wait.",
            "reasoning_content": "hm",
            "tool_calls": [
                {
                    "id": "toolu_1",
                    "type": "function",
                    "function": {"name": "f", "arguments": {"x": [1]}},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "toolu_1", "content": "one"},
        {"role": "tool", "tool_call_id": "toolu_1", "content": "Error: a\nb"},
        {"role": "user", "content": "Go on."},
        {"role": "tool", "tool_call_id": "toolu_2", "content": ""},
    ]
    assert not messages.continues


def test_what_it_thought_before_its_beginning_is_not_shown_again() -> None:
    thought = {"type": "redacted_thinking", "data": "x"}
    request = asked(HI, said(thought, *text("Hel"))).to_generate()
    assert request.continues
    assert request.messages == [HI, {"role": "assistant", "content": "Hel"}]


def test_tools_and_their_choice() -> None:
    tool = {"name": "f", "description": "d", "input_schema": {"type": "object"}, "strict": True}
    choice = {"type": "any", "disable_parallel_tool_use": True}
    request = asked(tools=[tool], tool_choice=choice).to_generate()
    (made,) = request.tools
    assert (made.name, made.description, made.strict) == ("f", "d", True)
    assert request.tool_choice == ToolChoice("required", None, parallel=False)
    assert request.params["tool_parameters"] == "tools[{}].input_schema"
    named = asked(tools=[tool], tool_choice={"type": "tool", "name": "f"}).to_generate()
    assert named.tool_choice == ToolChoice("required", "f")


@pytest.mark.parametrize(
    ("thinking", "kwargs", "budget"),
    [
        (None, {"enable_thinking": False}, None),
        ({"type": "disabled"}, {"enable_thinking": False}, None),
        ({"type": "adaptive"}, {}, None),
        ({"type": "enabled", "budget_tokens": 1024}, {"enable_thinking": True}, 1024),
    ],
)
def test_thinking(thinking: Any, kwargs: dict[str, bool], budget: int | None) -> None:
    request = asked(thinking=thinking, output_config={"effort": "low"}).to_generate()
    assert request.chat_template_kwargs == kwargs | {"reasoning_effort": "low"}
    assert request.thinking_budget == budget
    assert request.params["thinking_budget"] == "thinking.budget_tokens"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"output_format": FORM}, "output_format.schema"),
        ({"output_config": {"format": FORM}}, "output_config.format.schema"),
    ],
)
def test_the_form_of_the_answer(fields: dict[str, Any], param: str) -> None:
    assert asked(**fields).to_generate().structure == Structure(
        "json_schema", {"type": "object"}, param
    )


PARTS: list[Part] = [
    Reasoning("hm"),
    Reasoning("!"),
    Content("Wait"),
    CallBegun(0, "call_1", "f"),
    CallArguments(0, '{"x"'),
    CallArguments(0, ": 1}"),
    CallBegun(1, "call_2", "g"),
    CallArguments(1, "[oh"),
]


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("shows_thinking", [True, False])
def test_the_blocks_of_an_answer_however_it_was_cut(size: int, shows_thinking: bool) -> None:
    telling, blocks = teller(shows_thinking=shows_thinking), Blocks(shows_thinking=shows_thinking)
    events = b""
    for start in range(0, len(PARTS), size):
        delta = TextDelta("raw", [1], PARTS[start : start + size])
        blocks.add(delta)
        events += telling.delta(delta)
    events += telling.final("tool_use", None, USAGE)
    made = orjson.loads(msgspec.json.encode(blocks.made()))
    assert made == [
        {"type": "thinking", "thinking": "hm!" * shows_thinking, "signature": "unsigned"},
        {"type": "text", "text": "Wait"},
        {"type": "tool_use", "id": "call_1", "name": "f", "input": {"x": 1}},
        {"type": "tool_use", "id": "call_2", "name": "g", "input": {"INVALID_JSON": "[oh"}},
    ]
    streamed: list[dict[str, Any]] = []
    for event in events.split(b"\n\n")[:-1]:
        data = orjson.loads(event.partition(b"data: ")[2])
        if data["type"] == "content_block_start":
            assert data["index"] == len(streamed)
            streamed.append(data["content_block"])
        elif data["type"] == "content_block_delta":
            assert data["index"] == len(streamed) - 1
            ((name, piece),) = [item for item in data["delta"].items() if item[0] != "type"]
            streamed[-1][name] = streamed[-1].get(name, "") + piece
    assert [block.pop("partial_json", None) for block in streamed][2:] == ['{"x": 1}', "[oh"]
    assert streamed[:2] == made[:2]
    assert [block["name"] for block in streamed[2:]] == ["f", "g"]


@pytest.mark.parametrize(
    ("error", "type"),
    [
        (InvalidField("bad", param="x"), "invalid_request_error"),
        (Unauthorized("bad"), "authentication_error"),
        (ModelNotFound("bad"), "not_found_error"),
        (BodyTooLarge("bad"), "request_too_large"),
        (Overloaded("bad"), "rate_limit_error"),
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
