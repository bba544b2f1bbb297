"""Bodies of LMDeploy's routes for token ids, and of those that control the server."""

from __future__ import annotations

from typing import Any

import msgspec
import orjson
import pytest

from lmserve.errors import InvalidField
from lmserve.messages import TokenLogprob
from lmserve.protocol.control import AbortRequest, check_level, check_tags
from lmserve.protocol.decode import decode
from lmserve.protocol.health import HealthResponse
from lmserve.protocol.tokens import EncodeRequest, GenerateReqInput, OutputEncoder
from lmserve.types import Done, GenerateRequest, TextDelta, Usage
from tests.protocol.told import Told


def encode(**fields: Any) -> EncodeRequest:
    return decode(orjson.dumps(fields), EncodeRequest)[0]


def generate(**fields: Any) -> GenerateRequest:
    return decode(orjson.dumps(fields), GenerateReqInput)[0].to_generate("ann")


def test_one_text_is_answered_flat_and_several_in_lists() -> None:
    one, several, none = encode(input="a"), encode(input=["a", "b"]), encode(input=[])
    assert [request.text for request in one.to_generate()] == ["a"]
    assert [request.text for request in several.to_generate()] == ["a", "b"]
    assert one.answer([[1, 2]]) == b'{"input_ids":[1,2],"length":2}'
    assert several.answer([[1, 2], []]) == b'{"input_ids":[[1,2],[]],"length":[2,0]}'
    assert none.answer([]) == b'{"input_ids":[],"length":[]}'


def test_preprocessed_texts_are_turns() -> None:
    (request,) = encode(input=["a"], do_preprocess=True).to_generate()
    assert (request.text, request.messages) == (None, [{"role": "user", "content": "a"}])
    assert request.params["messages"] == "input[0]"


@pytest.mark.parametrize("fields", [{}, {"input": None}, {"input": [1]}, {"input": {"a": "b"}}])
def test_what_is_no_text(fields: Any) -> None:
    with pytest.raises(InvalidField, match="^input"):
        encode(**fields)


def test_a_prompt_is_text_or_ids() -> None:
    asked = generate(prompt="a", session_id=7, min_new_tokens=2)
    assert (asked.text, asked.token_ids, asked.max_tokens) == ("a", None, 128)
    assert (asked.owner, asked.session_id, asked.min_tokens) == ("ann", 7, 2)
    asked = generate(input_ids=[1, 2], max_tokens=3)
    assert (asked.text, asked.token_ids, asked.max_tokens) == (None, [1, 2], 3)
    assert asked.params["prompt"] == "input_ids"
    for fields in ({}, {"prompt": "a", "input_ids": [1]}, {"prompt": None, "input_ids": None}):
        with pytest.raises(InvalidField, match="exactly one of prompt and input_ids"):
            generate(**fields)


@pytest.mark.parametrize(
    ("name", "neutral", "other"),
    [
        ("top_logprobs_num", 0, 3),
        ("logprob_start_len", -1, 0),
        ("image_data", [], ["http://x/y.png"]),
        ("return_routed_experts", False, True),
        ("n", 1, 2),
    ],
)
def test_what_is_not_served_is_refused(name: str, neutral: Any, other: Any) -> None:
    assert generate(prompt="a", **{name: neutral}).text == "a"
    assert generate(prompt="a", **{name: None}).text == "a"
    with pytest.raises(InvalidField) as caught:
        generate(prompt="a", **{name: other})
    assert caught.value.param == name


def test_an_output() -> None:
    done = Done("length", Usage(prompt_tokens=3, completion_tokens=2, cached_tokens=1))
    asked = GenerateReqInput(prompt="a")
    encoder = OutputEncoder(asked, Told(usage=done.usage, unshown_ids=[6]))
    middle = orjson.loads(encoder.chunk(TextDelta("a", [5])))
    assert (middle["text"], middle["output_ids"]) == ("a", [5])
    assert middle["meta_info"]["finish_reason"] is None
    encoder = OutputEncoder(asked, Told(usage=done.usage, unshown_ids=[6]))
    encoder.add(TextDelta("ab", [5]))
    assert orjson.loads(encoder.end(done)) == {
        "text": "ab",
        "output_ids": [5, 6],
        "meta_info": {
            "prompt_tokens": 3,
            "completion_tokens": 2,
            "cached_tokens": 1,
            "finish_reason": {"type": "length"},
            "output_token_logprobs": None,
            "input_token_logprobs": None,
            "output_top_logprobs": None,
            "input_top_logprobs": None,
            "routed_experts": None,
        },
    }


def test_logprobs_of_an_output() -> None:
    asked = GenerateReqInput(
        prompt="a", return_logprob=True, top_logprobs_num=1, logprob_start_len=0
    )
    request = asked.to_generate()
    assert (request.logprobs, request.prompt_logprobs, request.prompt_logprobs_start) == (1, 1, 0)
    source = Told(
        prompt_ids=[7, 8],
        prompt_logprobs=[TokenLogprob(8, -0.5, [9], [-0.25])],
    )
    encoder = OutputEncoder(asked, source)
    told = [TokenLogprob(5, -1.0, [6], [-0.75])]
    first = orjson.loads(encoder.chunk(TextDelta("a", [5], logprobs=told)))["meta_info"]
    assert first["input_token_logprobs"] == [[None, 7], [-0.5, 8]]
    assert first["input_top_logprobs"] == [None, [[-0.25, 9]]]
    assert first["output_token_logprobs"] == [[-1.0, 5]]
    assert first["output_top_logprobs"] == [[[-0.75, 6]]]
    second = orjson.loads(encoder.chunk(TextDelta("b", [6], logprobs=[])))["meta_info"]
    assert second["input_token_logprobs"] is None
    assert second["output_token_logprobs"] == []
    for name in ("top_logprobs_num", "logprob_start_len"):
        with pytest.raises(InvalidField) as caught:
            generate(prompt="a", **{name: 1})
        assert caught.value.param == name


def test_who_is_to_be_aborted() -> None:
    def target(**fields: Any) -> int | None:
        return msgspec.convert(fields, AbortRequest).target()

    assert target(session_id=3, finished_reason={"type": "x"}, abort_message="why") == 3
    assert target(session_id=3, abort_all=True) is None
    for fields in ({}, {"session_id": -1}, {"abort_all": False}):
        with pytest.raises(InvalidField, match="session_id is needed"):
            target(**fields)


def test_levels_and_tags() -> None:
    for level in ("1", "2"):
        check_level(level)
    for level in ("0", "3", "", "one"):
        with pytest.raises(InvalidField, match=f"level is {level!r}: it must be 1 or 2"):
            check_level(level)
    for tags in ([], ["weights"], ["kv_cache"], ["weights", "kv_cache"]):
        check_tags(tags)
    with pytest.raises(InvalidField, match="there is no tag 'kv'"):
        check_tags(["weights", "kv"])


@pytest.mark.parametrize(
    ("state", "status", "code"),
    [
        ("ready", "healthy", 200),
        ("sleeping", "sleeping", 200),
        ("loading", "initializing", 503),
        ("restarting", "unhealthy", 503),
        ("stuck", "unhealthy", 503),
        ("failed", "unhealthy", 503),
        ("closed", "unhealthy", 503),
    ],
)
def test_health_in_lmdeploys_words(state: Any, status: str, code: int) -> None:
    told = HealthResponse.of(state, "why", 1.23456, "0123abcd")
    assert (told.status, told.state, told.http_status) == (status, state, code)
    assert (told.message, told.heard_s) == ("why", 1.235)
