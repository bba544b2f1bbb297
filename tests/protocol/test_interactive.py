"""`GenerateRequest` of the page: its defaults, its words, its bytes."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmserve import types
from lmserve.errors import EngineError, InvalidField
from lmserve.protocol.decode import decode
from lmserve.protocol.interactive import GenerateRequest, GenerateResponse, InteractiveEncoder

FIELDS = tuple(field.name for field in msgspec.structs.fields(GenerateRequest))
HI = [{"role": "user", "content": "hi"}]


def ask(**fields: Any) -> GenerateRequest:
    asked, unknown = decode(orjson.dumps({"prompt": "hi"} | fields), GenerateRequest)
    assert unknown == []
    return asked


def test_the_defaults_of_the_page() -> None:
    assert msgspec.structs.asdict(ask()) == {
        "prompt": "hi",
        "image_url": None,
        "session_id": -1,
        "interactive_mode": False,
        "stream": False,
        "stop": None,
        "request_output_len": None,
        "top_p": 0.8,
        "top_k": 40,
        "temperature": 0.8,
        "repetition_penalty": 1.0,
        "ignore_eos": False,
        "skip_special_tokens": True,
        "spaces_between_special_tokens": True,
        "cancel": False,
        "adapter_name": None,
        "seed": None,
        "min_new_tokens": None,
        "min_p": 0.0,
    }


def test_null_is_the_default() -> None:
    assert ask(**dict.fromkeys(set(FIELDS) - {"prompt"})) == ask()


def test_what_clients_send_on_top_is_ignored() -> None:
    body = {"prompt": "hi", "kwargs": {}, "model": "m"}
    asked, unknown = decode(orjson.dumps(body), GenerateRequest)
    assert asked == ask()
    assert sorted(unknown) == ["kwargs", "model"]


def test_all_fields_arrive() -> None:
    fields: dict[str, Any] = {
        "session_id": 7,
        "stop": ["a", "b"],
        "request_output_len": 5,
        "top_p": 0.5,
        "top_k": 0,
        "temperature": 0,
        "repetition_penalty": 1.5,
        "ignore_eos": True,
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
        "seed": 0,
        "min_new_tokens": 2,
        "min_p": 0.1,
    }
    wanted = ask(**fields).to_generate("me")
    assert wanted == types.GenerateRequest(
        messages=HI,
        stop=("a", "b"),
        max_tokens=5,
        top_p=0.5,
        top_k=0,
        temperature=0.0,
        repetition_penalty=1.5,
        ignore_eos=True,
        skip_special_tokens=False,
        seed=0,
        min_tokens=2,
        min_p=0.1,
        params={
            "messages": "prompt",
            "max_tokens": "request_output_len",
            "min_tokens": "min_new_tokens",
        },
        owner="me",
        session_id=7,
    )
    assert ask(stop="x").to_generate("").stop == ("x",)
    assert ask().to_generate("").session_id is None


def test_prompts() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    history = [*HI, {"role": "assistant", "content": "yes"}, {"role": "user", "content": parts}]
    assert ask(prompt=history).messages() == history
    assert ask().to_generate("", as_text=True).text == "hi"
    assert ask(prompt=HI).to_generate("", as_text=True).messages == HI


@pytest.mark.parametrize(
    ("content", "param"),
    [
        ([{"type": "image_url", "image_url": {"url": "x"}}], "prompt[1].content[0].type"),
        ([{"type": "text", "text": "a"}, {"type": "text"}], "prompt[1].content[1].text"),
    ],
)
def test_parts_that_are_no_text(content: Any, param: str) -> None:
    body = {"prompt": [*HI, {"role": "user", "content": content}]}
    asked, _ = decode(orjson.dumps(body), GenerateRequest)
    with pytest.raises(InvalidField) as told:
        asked.to_generate("")
    assert told.value.param == param


WRONG: dict[str, list[Any]] = {
    "prompt": [3, None, {}, [3], ["hi"], [{"content": "x"}], [{"role": "user"}], [{"role": "x"}]],
    "image_url": ["http://x/y.png", ["x"], 3],
    "session_id": ["1", 1.5, True, 2**70, []],
    "interactive_mode": ["true", 1],
    "stream": [1, "yes"],
    "stop": [3, [3], {}],
    "request_output_len": ["5", 5.5, True],
    "top_p": ["0.5", True, []],
    "top_k": ["5", 0.5],
    "temperature": ["1", {}],
    "repetition_penalty": ["1"],
    "ignore_eos": [1],
    "skip_special_tokens": ["no"],
    "spaces_between_special_tokens": [0],
    "cancel": ["1"],
    "adapter_name": ["lora", 3],
    "seed": ["3", 1.5],
    "min_new_tokens": ["3"],
    "min_p": ["0"],
}


@pytest.mark.parametrize("name", FIELDS)
def test_wrong_types_name_the_field(name: str) -> None:
    for value in WRONG[name]:
        with pytest.raises(InvalidField) as told:
            decode(json.dumps({"prompt": "hi"} | {name: value}).encode(), GenerateRequest)
        assert told.value.param is not None, value
        assert told.value.param.startswith(name), value
        assert name in told.value.message, value


def test_a_prompt_is_required() -> None:
    with pytest.raises(InvalidField, match="prompt is required"):
        decode(b"{}", GenerateRequest)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"session_id": -2}, "session_id"),
        ({"cancel": True}, "session_id"),
        ({"request_output_len": -1}, "request_output_len"),
        ({"top_k": -1}, "top_k"),
    ],
)
def test_what_this_route_refuses(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidField) as told:
        ask(**fields).check()
    assert told.value.param == param


def test_an_empty_prompt_asks_for_nothing() -> None:
    for prompt in ("", []):
        with pytest.raises(InvalidField, match="prompt is empty"):
            ask(prompt=prompt).to_generate("")


@pytest.mark.parametrize(
    ("fields", "ends", "replays"),
    [
        ({"prompt": "", "request_output_len": 0}, True, False),
        ({"prompt": "", "request_output_len": 0, "interactive_mode": True}, False, False),
        ({"prompt": ""}, False, False),
        ({"prompt": "x", "request_output_len": 0}, False, False),
        ({"prompt": "x", "request_output_len": 0, "interactive_mode": True}, False, True),
        ({"prompt": HI, "request_output_len": 0, "interactive_mode": True}, False, True),
        ({"prompt": HI, "interactive_mode": True}, False, False),
    ],
)
def test_calls_without_an_answer(fields: dict[str, Any], ends: bool, replays: bool) -> None:
    asked = ask(**fields)
    assert (asked.ends_session, asked.replays) == (ends, replays)


def of_struct(raw: bytes) -> bytes:
    """Encoded again by the struct that documents it: the same keys in the same order."""
    return msgspec.json.encode(msgspec.json.decode(raw, type=GenerateResponse, strict=True))


@given(
    text=st.text(st.characters(exclude_categories=["Cs"])),
    num_tokens=st.integers(0, 2**40),
    counts=st.tuples(st.integers(0, 2**40), st.integers(0, 2**40)),
)
def test_hand_built_objects_hold_to_the_struct(
    text: str, num_tokens: int, counts: tuple[int, int]
) -> None:
    encoder = InteractiveEncoder(*counts)
    line = encoder.delta(types.TextDelta(text, [1, 2]))
    assert line.endswith(b"}\n") and line.count(b"\n") == 1
    whole = encoder.whole(text, num_tokens, "stop")
    for raw, tokens, reason in ((line, 2, None), (whole, num_tokens, "stop")):
        read = orjson.loads(raw)
        assert list(read) == list(GenerateResponse.__struct_fields__)
        assert list(read.values()) == [text, tokens, *counts, reason]
        assert orjson.loads(of_struct(raw)) == read


def test_reasons() -> None:
    encoder = InteractiveEncoder(3, 4)
    assert orjson.loads(encoder.whole("", 0, "abort"))["finish_reason"] == "stop"
    assert orjson.loads(encoder.whole("", 0, "length"))["finish_reason"] == "length"
    assert orjson.loads(encoder.failed(EngineError("out of luck"))) == {
        "text": "internal error happened: out of luck",
        "tokens": 0,
        "input_tokens": 3,
        "history_tokens": 4,
        "finish_reason": "error",
    }
