"""Requests for answers that are kept: what may be asked, and what is refused."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from lmserve.errors import InvalidField
from lmserve.protocol.decode import decode
from lmserve.protocol.responses.changes import ResponseSteer, ResponseUpdate
from lmserve.protocol.responses.requests import ResponseCreate
from lmserve.protocol.turns import TurnBody
from lmserve.types import GenerateRequest, Structure, Tool, ToolChoice


def read(body: dict[str, Any]) -> ResponseCreate:
    asked, unknown = decode(orjson.dumps(body), ResponseCreate)
    assert unknown == []
    asked.check()
    return asked


def to_generate(**body: Any) -> GenerateRequest:
    return read({"input": "hi"} | body).to_generate("me")


def text(kind: str, text: str) -> dict[str, Any]:
    return {"type": kind, "text": text}


SAID = {  # as an answer of ours is sent back
    "id": "msg_2",
    "type": "message",
    "role": "assistant",
    "status": "completed",
    "content": [{"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}],
}


THOUGHT = {
    "id": "rs_2",
    "type": "reasoning",
    "status": "completed",
    "summary": [],
    "content": [{"type": "reasoning_text", "text": "Hm"}],
}


def call(id: str) -> dict[str, Any]:
    return {"type": "function_call", "id": "fc_1", "call_id": id, "name": "f", "arguments": "{}"}


def chat_call(id: str) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": "f", "arguments": "{}"}}


def output(id: str) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": id, "output": "12"}


@pytest.mark.parametrize(
    ("given", "messages"),
    [
        ("hi", [{"role": "user", "content": "hi"}]),
        ([{"role": "user", "content": "hi"}], [{"role": "user", "content": "hi"}]),
        (
            [{"type": "message", "role": "developer", "content": [text("input_text", "Be kind")]}],
            [{"role": "system", "content": "Be kind"}],
        ),
        ([SAID], [{"role": "assistant", "content": "Hello"}]),
        (
            [{"role": "user", "content": [text("input_text", "a"), text("text", "b")]}],
            [{"role": "user", "content": [text("text", "a"), text("text", "b")]}],
        ),
        (
            [{"type": "function_call_output", "call_id": "c1", "output": "12"}],
            [{"role": "tool", "content": "12", "tool_call_id": "c1"}],
        ),
        ([{"type": "reasoning", "summary": [], "encrypted_content": "x"}, SAID],
         [{"role": "assistant", "content": "Hello"}]),
        ([SAID, SAID], [{"role": "assistant", "content": "Hello"}] * 2),
        (
            [THOUGHT, SAID, call("c1"), call("c2"), output("c1"), call("c3")],
            [
                {"role": "assistant", "content": "Hello", "reasoning_content": "Hm",
                 "tool_calls": [chat_call("c1"), chat_call("c2")]},
                {"role": "tool", "content": "12", "tool_call_id": "c1"},
                {"role": "assistant", "content": None, "tool_calls": [chat_call("c3")]},
            ],
        ),
        ([call("c1"), SAID],
         [{"role": "assistant", "content": "Hello", "tool_calls": [chat_call("c1")]}]),
    ],
)  # fmt: skip
def test_input(given: Any, messages: Any) -> None:
    assert to_generate(input=given).messages == messages


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ("", "input"),
        ([], "input"),
        (None, "input"),
        ([{"content": "hi"}], "input[0].role"),
        ([{"role": "user"}], "input[0].content"),
        ([{"role": "critic", "content": "hi"}], "input[0].role"),
        ([SAID, {"type": "computer_call", "id": "r"}], "input[1].type"),
        ([{"type": "function_call", "name": "f", "arguments": "{}"}], "input[0].call_id"),
        ([{"type": "function_call", "call_id": "c", "arguments": "{}"}], "input[0].name"),
        ([{"type": "function_call", "call_id": "c", "name": "f"}], "input[0].arguments"),
        ([{"type": "reasoning", "content": [text("input_text", "x")]}],
         "input[0].content[0].type"),
        ([SAID, {"type": "item_reference", "id": "msg_1"}], "input[1].type"),
        ([{"role": "user", "content": [text("text", "a"), {"type": "input_image"}]}],
         "input[0].content[1].type"),
        ([{"role": "user", "content": [{"type": "input_text"}]}], "input[0].content[0].text"),
        ([{"type": "function_call_output", "output": "1"}], "input[0].call_id"),
        ([{"type": "function_call_output", "call_id": "c"}], "input[0].output"),
    ],
)  # fmt: skip
def test_refused_input(given: Any, param: str) -> None:
    with pytest.raises(InvalidField) as refused:
        to_generate(input=given)
    assert refused.value.param == param
    assert param.rpartition(".")[2] in refused.value.message


def test_settings() -> None:
    request = to_generate(
        max_output_tokens=3, temperature=0.5, top_p=0.9, top_k=4, seed=7, stop="x", ignore_eos=True
    )
    assert (request.max_tokens, request.temperature, request.top_p) == (3, 0.5, 0.9)
    assert (request.top_k, request.seed, request.stop) == (4, 7, ("x",))
    assert request.ignore_eos and request.owner == "me"
    assert request.params["messages"] == request.params["prompt"] == "input"
    assert request.params["max_tokens"] == "max_output_tokens"
    assert request.splits and not request.tools and request.structure is None


SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER = {"type": "function", "name": "weather", "description": "Now", "parameters": SCHEMA}


def test_tools() -> None:
    request = to_generate(
        tools=[WEATHER | {"strict": True}, {"type": "function", "name": "f"}],
        tool_choice={"type": "function", "name": "f"},
        parallel_tool_calls=False,
    )
    assert request.tools == (Tool("weather", "Now", SCHEMA, strict=True), Tool("f"))
    assert request.tool_choice == ToolChoice("required", "f", parallel=False)


@pytest.mark.parametrize(
    ("form", "structure"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, Structure("json_object", None, "text.format")),
        (
            {"type": "json_schema", "name": "city", "schema": SCHEMA, "strict": True},
            Structure("json_schema", SCHEMA, "text.format.schema"),
        ),
    ],
)
def test_forms(form: dict[str, Any], structure: Structure | None) -> None:
    asked = read({"input": "hi", "text": {"format": form}})
    assert asked.to_generate("").structure == structure
    assert asked.told()["text"] == {"format": form}


def test_reasoning() -> None:
    request = to_generate(
        reasoning={"effort": "none", "max_tokens": 5}, chat_template_kwargs={"a": 1}
    )
    assert request.thinking_budget == 5
    assert request.params["thinking_budget"] == "reasoning.max_tokens"
    kwargs = {"reasoning_effort": "none", "enable_thinking": False, "a": 1}
    assert request.chat_template_kwargs == kwargs


NOTHING: list[dict[str, Any]] = [
    {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True},
    {"truncation": "disabled", "text": {"format": {"type": "text"}, "verbosity": "low"}},
    {
        "reasoning": {"effort": "none", "summary": "auto"},
        "include": ["reasoning.encrypted_content"],
    },
    {"service_tier": "auto", "prompt_cache_key": "k", "safety_identifier": "s", "user": "u"},
    {"top_logprobs": 0, "max_tool_calls": 3, "background": False, "store": True},
    {"stream": True, "stream_options": {"include_obfuscation": False}},
    {"conversation": None, "previous_response_id": None, "metadata": None, "text": None},
]


LOGPROBS = "message.output_text.logprobs"


@pytest.mark.parametrize(
    ("body", "logprobs"),
    [
        ({}, None),
        ({"top_logprobs": 0}, None),
        ({"top_logprobs": 3}, 3),
        ({"include": [LOGPROBS]}, 0),
        ({"include": ["reasoning.encrypted_content", LOGPROBS], "top_logprobs": 20}, 20),
    ],
)
def test_log_probabilities(body: dict[str, Any], logprobs: int | None) -> None:
    request = to_generate(**body)
    assert request.logprobs == logprobs
    assert request.params.get("logprobs", "top_logprobs") == "top_logprobs"


@pytest.mark.parametrize("body", NOTHING)
def test_accepted(body: dict[str, Any]) -> None:
    to_generate(**body)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [WEATHER, {"type": "function"}]}, "tools[1].name"),
        ({"tool_choice": "perhaps"}, "tool_choice"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice.type"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "json_object"}}, "guided_regex": "a"}, "text.format"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
        ({"truncation": "auto"}, "truncation"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"session_id": 3}, "session_id"),
        ({"background": True, "store": False}, "background"),
        ({"conversation": "c", "previous_response_id": "resp_1"}, "previous_response_id"),
        ({"after": "msg_1"}, "after"),
        ({"edit": "msg_1"}, "edit"),
        ({"edit": "msg_1", "previous_response_id": "resp_1"}, "edit"),
        ({"conversation": "c", "edit": "msg_1", "after": "msg_1"}, "edit"),
        ({"conversation": "c", "regenerate": "msg_1"}, "regenerate"),
        ({"input": None, "regenerate": "msg_1"}, "regenerate"),
        ({"input": None, "continue": "msg_1"}, "continue"),
        ({"input": None, "continue": "resp_1", "regenerate": "resp_1"}, "continue"),
        ({"input": None, "continue": "resp_1", "previous_response_id": "resp_2"},
         "previous_response_id"),
        ({"input": None, "conversation": "c"}, "input"),
        ({"conversation": {"id": 3}}, "conversation.id"),
        ({"metadata": {"a": 1}}, "metadata[...]"),
        ({"max_output_tokens": "3"}, "max_output_tokens"),
    ],
)  # fmt: skip
def test_refused(body: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidField) as refused:
        to_generate(**body)
    assert refused.value.param == param


@pytest.mark.parametrize(
    "body",
    [
        {"regenerate": "resp_1"},
        {"continue": "resp_1"},
        {"conversation": "c", "regenerate": "msg_1"},
        {"conversation": {"id": "c"}, "continue": "msg_1"},
        {"generate": False, "instructions": "Be kind"},
        {"previous_response_id": "resp_1", "input": []},
    ],
)
def test_forms_without_input(body: dict[str, Any]) -> None:
    assert read(body).to_generate("").messages == []


def test_what_is_told() -> None:
    told = read(
        {"input": "hi", "temperature": 0, "metadata": {"a": "b"}, "store": False, "user": "u"}
    ).told()
    assert (told["temperature"], told["metadata"], told["store"]) == (0, {"a": "b"}, False)
    assert (told["user"], told["tool_choice"], told["max_output_tokens"]) == ("u", "auto", None)
    orjson.dumps(told)


def test_unknown_fields_are_told() -> None:
    body = {"input": [{"role": "user", "content": "x", "foo": 1}], "bar": 2}
    _, unknown = decode(orjson.dumps(body), ResponseCreate)
    assert sorted(unknown) == ["bar", "input.foo"]


@pytest.mark.parametrize("field", ["previous_response_id", "conversation"])
def test_a_turn_says_its_place_itself(field: str) -> None:
    with pytest.raises(InvalidField) as refused:
        decode(orjson.dumps({"input": "hi", field: "x"}), TurnBody)
    assert refused.value.param == field


def test_steering() -> None:
    def messages(given: Any) -> Any:
        return decode(orjson.dumps({"input": given}), ResponseSteer)[0].messages()

    assert messages("stop") == [{"role": "user", "content": "stop"}]
    assert messages([{"type": "function_call_output", "call_id": "c", "output": "1"}]) == [
        {"role": "tool", "content": "1", "tool_call_id": "c"}
    ]
    for given, param in (("", "input"), ([], "input"), ([SAID], "input[0].role")):
        with pytest.raises(InvalidField) as refused:
            messages(given)
        assert refused.value.param == param


def test_updates() -> None:
    def changes(body: dict[str, Any]) -> Any:
        return decode(orjson.dumps(body), ResponseUpdate)[0].changes()

    assert changes({"max_output_tokens": 3, "temperature": 0, "stop": "x"}) == {
        "max_tokens": 3,
        "temperature": 0,
        "stop": ("x",),
    }
    assert changes({"stop": []}) == {"stop": ()}
    with pytest.raises(InvalidField, match="max_output_tokens"):
        changes({})
