"""Every way a body can be wrong has one message that names the field."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmserve.errors import InvalidField, RequestError
from lmserve.protocol.decode import MAX_CHECKED_BYTES, MAX_UNKNOWN, decode, parse_object
from lmserve.protocol.openai.chat import ChatCompletionRequest
from lmserve.protocol.openai.completions import CompletionRequest

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
TEXT: dict[str, Any] = {"model": "m", "prompt": "hi"}


def chat(**fields: Any) -> ChatCompletionRequest:
    return decode(json.dumps(CHAT | fields).encode(), ChatCompletionRequest)[0]


def completion(**fields: Any) -> CompletionRequest:
    return decode(orjson.dumps(TEXT | fields), CompletionRequest)[0]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"{", "not valid JSON"),
        (b'{"a": NaN}', "not valid JSON"),
        (b'{"a": Infinity}', "not valid JSON"),
        (b'{"a": 1e999}', "not valid JSON"),
        (b'{"a": "\\ud800"}', "not valid JSON"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (b'\xef\xbb\xbf{"a": 1}', "BOM"),
        (b'{"a": 1} x', "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a":' * 100_000, "not valid JSON"),
        (b"[1]", "not an array"),
        (b'{"a": [' + b'"b",' * 300_000 + b'"c"]}', "over 250000 strings"),
        (b'{"a": [' + b"1," * 1_100_000 + b"1]}", "over 1000000 values"),
        (b'{"a": [' + b"{}," * 110_000 + b"{}]}", "over 100000 objects"),
        (b'"a"', "not a string"),
        (b"null", "not null"),
        (b"true", "not true or false"),
        (b"1", "not an integer"),
        (b'{"model": "a", "model": "b"}', "'model' twice"),
        (b'{"messages": [{"role": "user", "role": "system"}]}', "'role' twice"),
        (b'{"a": 1, "\\u0061": 2}', "'a' twice"),
        (b'{"a": 1, "a": ' + b"[" * 1000 + b"]" * 1000 + b"}", "twice"),
    ],
)
def test_a_body_that_is_no_object(body: bytes, says: str) -> None:
    with pytest.raises(RequestError, match=says) as caught:
        parse_object(body)
    assert caught.value.status == 400
    assert len(caught.value.message) < 200


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    ).map(lambda value: {"k": value})
)
def test_every_object_without_duplicates_parses(value: dict[str, Any]) -> None:
    assert parse_object(orjson.dumps(value)) == value


def test_keys_that_look_like_text_and_text_that_looks_like_keys() -> None:
    body = {'a"b': '"c": "d"', "e\\": {"f": ':"g":'}, '"': ["h", ":", '":']}
    assert parse_object(orjson.dumps(body)) == body


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"temperature": "1"}, "temperature", "must be a number, not a string"),
        ({"temperature": True}, "temperature", "not a boolean"),
        ({"temperature": []}, "temperature", "not an array"),
        ({"max_tokens": 1.5}, "max_tokens", "must be an integer, not a number"),
        ({"max_tokens": True}, "max_tokens", "not a boolean"),
        ({"max_completion_tokens": "5"}, "max_completion_tokens", "must be an integer"),
        ({"top_k": 2.0}, "top_k", "must be an integer"),
        ({"seed": 10**30}, "seed", "must be an integer"),
        ({"stream": 1}, "stream", "must be true or false, not an integer"),
        ({"stream": "true"}, "stream", "must be true or false"),
        ({"stop": 5}, "stop", "must be a string or an array"),
        ({"stop": ["a", 5]}, "stop[1]", "must be a string"),
        ({"stop": ["a", None]}, "stop[1]", "not null"),
        ({"stop_token_ids": [1, "2"]}, "stop_token_ids[1]", "must be an integer"),
        ({"stream_options": {"include_usage": "x"}}, "stream_options.include_usage", "true or"),
        ({"stream_options": []}, "stream_options", "must be an object"),
        ({"model": 1}, "model", "must be a string"),
        ({"messages": None}, "messages", "must be"),
        ({"messages": {}}, "messages", "must be"),
        ({"messages": ["a"]}, "messages[0]", "must be an object"),
        ({"messages": [{}]}, "messages[0].role", "is required"),
        ({"messages": [{"role": "bard"}]}, "messages[0].role", "must be one of"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "must be"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]},
            "messages[0].content[0].text",
            "must be a string",
        ),
        ({"n": "1"}, "n", "must be an integer"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs", "must be an object"),
    ],
)
def test_wrong_types(fields: dict[str, Any], param: str, says: str) -> None:
    with pytest.raises(InvalidField) as caught:
        chat(**fields)
    assert caught.value.param == param
    assert says in caught.value.message
    assert caught.value.message.startswith(param)
    assert "`" not in caught.value.message


def test_an_enum_value_cannot_forge_the_path() -> None:
    with pytest.raises(InvalidField) as caught:
        chat(messages=[{"role": "x - at `$.model`"}])
    assert caught.value.param == "messages[0].role"


def test_missing_fields() -> None:
    with pytest.raises(InvalidField, match="messages is required"):
        decode(b'{"model": "m"}', ChatCompletionRequest)
    with pytest.raises(InvalidField, match="prompt is required"):
        decode(b'{"model": "m"}', CompletionRequest)


@pytest.mark.parametrize("kind", [ChatCompletionRequest, CompletionRequest])
def test_null_is_absent_in_every_optional_field(kind: type[Any]) -> None:
    required = CHAT if kind is ChatCompletionRequest else TEXT
    optional = set(kind.__struct_fields__) - set(required) | {"model"}
    nulls = dict.fromkeys(optional)
    request, unknown = decode(orjson.dumps(required | nulls), kind)
    bare, _ = decode(orjson.dumps({k: v for k, v in required.items() if k != "model"}), kind)
    assert unknown == []
    assert request.to_generate() == bare.to_generate()


def test_unknown_fields_are_named() -> None:
    request, unknown = decode(orjson.dumps(CHAT | {"foo": 1, "kwargs": {}}), ChatCompletionRequest)
    assert unknown == ["foo", "kwargs"]
    assert request.to_generate() == chat().to_generate()


def test_unknown_fields_are_found_in_what_is_known() -> None:
    part = {"type": "text", "text": "a", "cache_control": {}}
    fields = {
        "messages": [{"role": "user", "content": [part, part], "weight": 1}, *CHAT["messages"]],
        "stream_options": {"chunk": 1},
        "response_format": {"type": "text", "shape": {"x": 1}},
        "metadata": {"anything": 1},
    }
    _, unknown = decode(orjson.dumps(CHAT | fields), ChatCompletionRequest)
    assert unknown == [
        "messages.content.cache_control",
        "messages.weight",
        "stream_options.chunk",
        "response_format.shape",
    ]


def test_not_every_unknown_name_of_a_body_is_told() -> None:
    names = {f"x{index}": 1 for index in range(1000)}
    _, unknown = decode(orjson.dumps(CHAT | names), ChatCompletionRequest)
    assert len(unknown) == MAX_UNKNOWN


def test_a_large_body_is_not_searched_for_keys_that_come_twice() -> None:
    fill = b" " * MAX_CHECKED_BYTES
    assert parse_object(b'{"a": 1, "a": 2}' + fill) == {"a": 2}


@pytest.mark.parametrize(
    ("name", "neutral", "asking"),
    [
        ("modalities", ["text"], ["audio"]),
        ("chat_template", "", "{{ 1 }}"),
        ("function_call", "auto", {"name": "f"}),
        ("store", False, True),
        ("web_search_options", None, {}),
        ("return_logprob", False, True),
        ("use_beam_search", False, True),
    ],
)
def test_what_is_not_served_is_refused_unless_it_asks_for_nothing(
    name: str, neutral: Any, asking: Any
) -> None:
    assert chat(**{name: neutral}).to_generate() == chat().to_generate()
    with pytest.raises(InvalidField, match="not supported yet") as caught:
        chat(**{name: asking})
    assert caught.value.param == name


@pytest.mark.parametrize(
    ("name", "neutral", "asking"),
    [
        ("return_logprob", False, True),
        ("prompt_embeds", "", "AAAA"),
        ("truncate_prompt_tokens", None, 5),
    ],
)
def test_what_completions_do_not_serve(name: str, neutral: Any, asking: Any) -> None:
    assert completion(**{name: neutral}).to_generate() == completion().to_generate()
    with pytest.raises(InvalidField, match="not supported yet") as caught:
        completion(**{name: asking})
    assert caught.value.param == name


def test_every_request_field_is_described() -> None:
    import msgspec

    for kind in (ChatCompletionRequest, CompletionRequest):
        schema = msgspec.json.schema(kind)
        properties = schema["$defs"][kind.__name__]["properties"]
        bare = [name for name, field in properties.items() if not field.get("description")]
        assert bare == []


def test_quotes_in_a_text_are_no_strings() -> None:
    text = '"\\{[,,' * 600_000
    assert parse_object(orjson.dumps({"a": text})) == {"a": text}
