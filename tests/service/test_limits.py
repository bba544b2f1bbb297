from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmserve.errors import InvalidField, PromptTooLong, RequestError
from lmserve.messages import EngineInfo
from lmserve.sampling import SamplingParams
from lmserve.service import limits
from lmserve.service.limits.sampling import _RANGES
from lmserve.types import GenerateRequest

INFO = EngineInfo(
    model_path="m",
    architecture="a",
    num_parameters=0,
    vocab_size=100,
    max_model_len=50,
    block_size=16,
    num_blocks=4,
    kv_cache_bytes=0,
    max_batch_size=1,
    dtype="float32",
    device="cpu",
    attention="cpu",
    weights="float32",
    deterministic=True,
    pid=1,
    tokenizer_file="",
    chat_template=None,
    bos_token=None,
    eos_token=None,
    eos_token_ids=(),
)


def validate(num_prompt_tokens: int = 10, info: EngineInfo = INFO, **fields: Any) -> SamplingParams:
    request = GenerateRequest(**{"text": "x"} | fields)
    limits.check_prompt(request, info)
    sampling = limits.sampling_params(request, info)
    return limits.fit(request, sampling, num_prompt_tokens, info)


def refusal(**fields: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        validate(**fields)
    assert caught.value.status == 400
    return caught.value


def test_defaults_request_over_model_over_ours() -> None:
    info = msgspec.structs.replace(
        INFO, generation_defaults={"temperature": 0.6, "top_p": 0.9, "top_k": 20.0, "min_p": 7.0}
    )
    sampling = validate(info=info, top_p=0.5)
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.6, 0.5, 20)
    assert sampling.min_p == 0.0  # the model's own is out of range
    assert validate(info=info, top_k=0, temperature=0.0).greedy
    assert validate().temperature == SamplingParams().temperature


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", [-0.1, 2.1, float("nan"), float("inf"), 1e308, -(2**63)]),
        ("top_p", [0, -1, 1.01, float("nan")]),
        ("min_p", [-0.1, 1.1, float("nan")]),
        ("repetition_penalty", [0, -1, 2.1, float("inf")]),
        ("presence_penalty", [-2.1, 2.1, float("-inf")]),
        ("frequency_penalty", [-2.1, 2.1, float("nan")]),
        ("top_k", [-2, 101, 2**63]),
        ("seed", [2**63, -(2**63) - 1]),
        ("max_tokens", [0, -1, -(2**31)]),
        ("min_tokens", [-1, 51, 2**31, 2**64]),
    ],
)
def test_out_of_range_names_the_field_and_the_range(name: str, values: list[float]) -> None:
    for value in values:
        error = refusal(**{name: value})
        assert error.param == name, value
        assert name in error.message


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", [0, 2, 1]),
        ("top_p", [1e-9, 1]),
        ("repetition_penalty", [0.1, 2]),
        ("presence_penalty", [-2, 2]),
        ("top_k", [-1, 0, 1, 100]),
        ("seed", [0, -1, 2**63 - 1, -(2**63)]),
        ("max_tokens", [1, 40, 2**70]),
        ("min_tokens", [0, 40]),
    ],
)
def test_the_ends_of_the_ranges_pass(name: str, values: list[float]) -> None:
    for value in values:
        assert isinstance(validate(**{name: value}), SamplingParams)


def test_top_k_off_is_zero() -> None:
    assert validate(top_k=-1).top_k == 0


def test_a_seed_is_drawn_where_none_is_given() -> None:
    seeds = {validate().seed for _ in range(20)}
    assert len(seeds) == 20
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("stop", "param"),
    [
        (("",), "stop[0]"),
        (("a", ""), "stop[1]"),
        (tuple("abcdefghijklmnopq"), "stop"),
    ],
)
def test_stop_strings(stop: tuple[str, ...], param: str) -> None:
    assert refusal(stop=stop).param == param


def test_as_many_stops_as_allowed() -> None:
    assert validate(stop=("x" * 100_000,) * 16)


@pytest.mark.parametrize("bad", [-1, 100, 2**31, 2**63])
def test_token_ids_outside_the_vocabulary(bad: int) -> None:
    assert refusal(stop_token_ids=(1, bad)).param == "stop_token_ids[1]"
    error = refusal(text=None, token_ids=[1, 99, bad])
    assert error.param == "prompt[2]"
    assert "0 to 99" in error.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"text": ""}, "prompt"),
        ({"text": None, "token_ids": []}, "prompt"),
        ({"text": None, "messages": []}, "messages"),
        ({"text": None}, "prompt"),
        ({"messages": [{}]}, "messages"),
    ],
)
def test_exactly_one_prompt_that_is_not_empty(fields: dict[str, Any], param: str) -> None:
    error = refusal(**fields)
    assert isinstance(error, InvalidField)
    assert error.param == param


def test_a_prompt_without_tokens() -> None:
    assert refusal(num_prompt_tokens=0).param == "prompt"


def test_null_max_tokens_is_as_many_as_fit() -> None:
    assert validate(num_prompt_tokens=10).max_tokens == 40
    assert validate(num_prompt_tokens=49).max_tokens == 1
    assert validate(num_prompt_tokens=10, max_tokens=1000).max_tokens == 40
    assert validate(num_prompt_tokens=10, max_tokens=3).max_tokens == 3


@pytest.mark.parametrize("num_tokens", [50, 51, 10**6])
def test_a_prompt_that_fills_the_context(num_tokens: int) -> None:
    error = refusal(num_prompt_tokens=num_tokens)
    assert isinstance(error, PromptTooLong)
    assert error.param == "prompt"
    for words in (str(num_tokens), "50", "49", "--session-len"):
        assert words in error.message


@pytest.mark.parametrize("max_tokens", [None, 45, 3])
def test_min_tokens_must_fit_too(max_tokens: int | None) -> None:
    error = refusal(num_prompt_tokens=10, min_tokens=41, max_tokens=max_tokens)
    assert error.param == "min_tokens"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 0}, "max_completion_tokens"),
        ({"min_tokens": -1}, "min_new_tokens"),
        ({"min_tokens": 5, "max_tokens": 2}, "min_new_tokens"),
        ({"min_tokens": 45}, "min_new_tokens"),
        ({"text": ""}, "prompt[3]"),
        ({"text": None, "token_ids": [1, 100]}, "prompt[3][1]"),
        ({"num_prompt_tokens": 50}, "prompt[3]"),
        ({"num_prompt_tokens": 0}, "prompt[3]"),
    ],
)
def test_fields_go_by_the_clients_names(fields: dict[str, Any], param: str) -> None:
    params = {
        "max_tokens": "max_completion_tokens",
        "min_tokens": "min_new_tokens",
        "prompt": "prompt[3]",
    }
    error = refusal(params=params, **fields)
    assert error.param == param
    assert param in error.message or isinstance(error, PromptTooLong)


def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenised() -> None:
    request = GenerateRequest(text="x", params={"prompt": "prompt[1]"})
    limits.check_length(request, 350, 7, INFO)  # 50 tokens of 7 characters
    with pytest.raises(PromptTooLong) as caught:
        limits.check_length(request, 351, 7, INFO)
    assert caught.value.param == "prompt[1]"
    assert "351 characters" in caught.value.message


numbers = st.none() | st.floats() | st.integers()


@given(
    numbers=st.fixed_dictionaries(dict.fromkeys(_RANGES, numbers)),
    top_k=st.none() | st.integers(),
    seed=st.none() | st.integers(),
    max_tokens=st.none() | st.integers(),
    min_tokens=st.none() | st.integers(),
    stop=st.lists(st.text(max_size=3), max_size=20).map(tuple),
    num_prompt_tokens=st.integers(0, 60),
)
def test_what_passes_is_in_range_and_crosses_the_bridge(
    numbers: dict[str, Any], num_prompt_tokens: int, **fields: Any
) -> None:
    try:
        sampling = validate(num_prompt_tokens, **numbers, **fields)
    except RequestError as error:
        assert error.param
        return
    for name, (least, greatest, _) in _RANGES.items():
        assert least <= getattr(sampling, name) <= greatest
    assert 0 <= sampling.top_k <= INFO.vocab_size
    assert 1 <= sampling.max_tokens <= INFO.max_model_len - num_prompt_tokens
    assert 0 <= sampling.min_tokens <= sampling.max_tokens
    packed = msgspec.msgpack.encode(sampling)
    assert msgspec.msgpack.decode(packed, type=SamplingParams) == sampling


# --- when it is to run, and what is changed while it does ------------------------------------


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"priority": -1}, "priority"),
        ({"priority": 101}, "priority"),
        ({"priority": 1000}, "priority"),  # a draft's
        ({"deadline_s": 0.0}, "deadline_s"),
        ({"deadline_s": -1.0}, "deadline_s"),
        ({"deadline_s": 86401.0}, "deadline_s"),
        ({"deadline_s": float("nan")}, "deadline_s"),
    ],
)
def test_turns_out_of_range(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidField) as caught:
        limits.check_turn(GenerateRequest(text="x", **fields))
    assert caught.value.param == param


@pytest.mark.parametrize("fields", [{}, {"priority": 100}, {"deadline_s": 0.1}])
def test_turns_in_range(fields: dict[str, Any]) -> None:
    limits.check_turn(GenerateRequest(text="x", **fields))


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({}, None),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": ["a", ""]}, "stop[1]"),
    ],
)
def test_changes_out_of_range(changes: dict[str, Any], param: str | None) -> None:
    with pytest.raises(InvalidField) as caught:
        limits.changed(SamplingParams(), 10, INFO, **changes)
    assert caught.value.param == param


def test_a_longer_answer_has_no_more_log_probabilities_than_a_new_one() -> None:
    info = msgspec.structs.replace(INFO, max_model_len=10**7)
    before, most = SamplingParams(max_tokens=9, logprobs=19), limits.told.MAX_TOLD // 20
    assert limits.changed(before, 10, info, max_tokens=most).max_tokens == most
    with pytest.raises(InvalidField, match="log probabilities.*lower max_tokens") as caught:
        limits.changed(before, 10, info, max_tokens=most + 1)
    assert caught.value.param == "max_tokens"
    assert limits.changed(before, 10, INFO, max_tokens=most + 1).max_tokens == 40  # all that fits
    limits.changed(SamplingParams(max_tokens=9), 10, info, max_tokens=most + 1)


def test_changes_are_cut_to_the_context_and_leave_the_rest() -> None:
    before = SamplingParams(temperature=0.5, max_tokens=9, min_tokens=4, seed=3, top_k=7)
    after = limits.changed(before, 10, INFO, max_tokens=1000)
    assert after == msgspec.structs.replace(before, max_tokens=40)
    assert limits.changed(before, 10, INFO, stop=[]) == before
    shorter = limits.changed(before, 10, INFO, max_tokens=2, temperature=0.0)
    assert (shorter.max_tokens, shorter.min_tokens, shorter.temperature) == (2, 2, 0.0)
