"""Limits on what a request may ask for beside its answer, and on what the answer may hold."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmserve.bridge.fake import FakeEngine
from lmserve.errors import InvalidField, PromptTooLong
from lmserve.sampling import SamplingParams
from lmserve.service import limits
from lmserve.service.generate import Service, collect
from lmserve.types import GenerateRequest, Tool, ToolChoice
from tests.service.test_limits import INFO, refusal, validate

NUMBERS = [-1, 21, 2**31, 2**63]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        *(({"logprobs": value}, "logprobs") for value in NUMBERS),
        *(({"prompt_logprobs": value}, "prompt_logprobs") for value in NUMBERS),
        ({"logprobs": 21, "params": {"logprobs": "top_logprobs"}}, "top_logprobs"),
        ({"prompt_logprobs_start": -1}, "prompt_logprobs_start"),
        ({"prompt_logprobs_start": 11}, "prompt_logprobs_start"),
        (
            {"prompt_logprobs_start": 2**63, "params": {"prompt_logprobs_start": "logprob_start"}},
            "logprob_start",
        ),
        ({"logit_bias": {-1: 0.0}}, "logit_bias.-1"),
        ({"logit_bias": {100: 0.0}}, "logit_bias.100"),
        ({"logit_bias": {2**63: 0.0}}, f"logit_bias.{2**63}"),
        ({"logit_bias": {1: 100.5}}, "logit_bias.1"),
        ({"logit_bias": {1: math.nan}}, "logit_bias.1"),
        ({"logit_bias": {1: -math.inf}}, "logit_bias.1"),
        ({"logit_bias": dict.fromkeys(range(1025), 0.0)}, "logit_bias"),
        ({"allowed_token_ids": (1, -1)}, "allowed_token_ids[1]"),
        ({"allowed_token_ids": (100,)}, "allowed_token_ids[0]"),
        ({"allowed_token_ids": (2**31,)}, "allowed_token_ids[0]"),
        ({"stop_token_ids": (1,) * 257}, "stop_token_ids"),
        ({"max_tokens": -1, "prompt_logprobs": 0}, "max_tokens"),
        ({"max_tokens": -1, "may_be_empty": True}, "max_tokens"),
        ({"max_tokens": 0, "may_be_empty": True, "min_tokens": 1}, "min_tokens"),
    ],
)
def test_refused(fields: dict[str, Any], param: str) -> None:
    error = refusal(**fields)
    assert error.param == param
    assert param.split("[")[0].split(".")[0] in error.message


def test_what_is_asked_for_crosses_to_the_engine() -> None:
    sampling = validate(
        logprobs=20,
        prompt_logprobs=0,
        prompt_logprobs_start=10,  # the prompt has ten tokens
        logit_bias={99: 100, 0: -100},
        allowed_token_ids=(3, 1, 3),
        tell_progress=True,
        max_tokens=0,
    )
    assert (sampling.logprobs, sampling.prompt_logprobs) == (20, 0)
    assert sampling.prompt_logprobs_start == 10
    assert sampling.logit_bias == ((0, -100.0), (99, 100.0))
    assert sampling.allowed_token_ids == (3, 1)
    assert sampling.tell_progress
    assert sampling.max_tokens == 0


def test_a_prompt_alone_may_fill_the_context() -> None:
    assert validate(50, may_be_empty=True, max_tokens=0).max_tokens == 0
    refusal(num_prompt_tokens=51, may_be_empty=True, max_tokens=0)
    refusal(num_prompt_tokens=50, may_be_empty=True, max_tokens=1)


# --- bad words -------------------------------------------------------------------------------


def spelled(text: str) -> list[list[int]]:
    """A token a letter; a space before one belongs to it."""
    whole = [ord(char) - 96 for char in text]
    return [whole, whole, [whole[0] + 40, *whole[1:]]]


def bad_words(*words: str, **fields: Any) -> SamplingParams:
    request = GenerateRequest(text="x", bad_words=words, **fields)
    sampling = limits.sampling_params(request, INFO)
    return limits.with_bad_words(request, sampling, spelled, INFO)


def test_a_bad_word_is_one_with_a_space_before_it_and_without() -> None:
    assert bad_words("ab").bad_words == ((1, 2), (41, 2))
    assert bad_words(" ab", "ab").bad_words == ((1, 2), (41, 2))
    assert bad_words("a", "b").bad_words == ((1,), (41,), (2,), (42,))
    assert bad_words().bad_words == ()


def test_a_sequence_that_ends_in_another_is_left_out() -> None:
    request = GenerateRequest(text="x", bad_words=("w",))
    found = limits.with_bad_words(request, SamplingParams(), lambda _: [[5], [9, 5]], INFO)
    assert found.bad_words == ((5,),)


def test_what_the_model_cannot_say_need_not_be_banned() -> None:
    request = GenerateRequest(text="x", bad_words=("w",))
    found = limits.with_bad_words(request, SamplingParams(), lambda _: [[5, 100], []], INFO)
    assert found.bad_words == ()


@pytest.mark.parametrize(
    ("words", "param"),
    [
        (("a", ""), "bad_words[1]"),
        (("a" * 257,), "bad_words[0]"),
        (("a",) * 129, "bad_words"),
    ],
)
def test_bad_words_that_cannot_be(words: tuple[str, ...], param: str) -> None:
    with pytest.raises(InvalidField) as caught:
        bad_words(*words)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "fields",
    [
        {"bad_words": ("a",), "allowed_token_ids": (1, 41)},
        {"allowed_token_ids": (7,), "min_tokens": 1, "stop_token_ids": (7,)},
    ],
)
def test_some_token_must_be_left(fields: dict[str, Any]) -> None:
    words = fields.pop("bad_words", ())
    with pytest.raises(InvalidField) as caught:
        bad_words(*words, **fields, params={"allowed_token_ids": "allowed"})
    assert caught.value.param == "allowed"
    more = fields | {"allowed_token_ids": (*fields["allowed_token_ids"], 3)}
    assert bad_words(*words, **more).allowed_token_ids


# --- functions, reasoning --------------------------------------------------------------------


def tools_refusal(**fields: Any) -> InvalidField:
    with pytest.raises(InvalidField) as caught:
        limits.check_tools(GenerateRequest(messages=[{}], **fields))
    return caught.value


@pytest.mark.parametrize("name", ["", "a b", "a" * 65, "é", "a\n", "<tool_call>", "a/b", "\x00"])
def test_names_of_functions(name: str) -> None:
    assert tools_refusal(tools=(Tool("ok"), Tool(name))).param == "tools[1]"


def test_functions_that_pass() -> None:
    tools = tuple(Tool(f"get-it_{i}.x", "what", {"type": "object"}) for i in range(128))
    for choice in (
        ToolChoice(),
        ToolChoice("none"),
        ToolChoice("required"),
        ToolChoice("required", "get-it_127.x"),
    ):
        limits.check_tools(GenerateRequest(messages=[{}], tools=tools, tool_choice=choice))
    limits.check_tools(GenerateRequest(text="x"))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": tuple(Tool(f"f{i}") for i in range(129))}, "tools"),
        ({"tools": (Tool("f"), Tool("f"))}, "tools[1]"),
        ({"tools": (Tool("f", "x" * 2**20),)}, "tools"),
        ({"tools": (Tool("f", parameters={"x": "\ud800"}),)}, "tools[0]"),
        ({"tool_choice": ToolChoice("required")}, "tool_choice"),
        ({"tools": (Tool("f"),), "tool_choice": ToolChoice("required", "g")}, "tool_choice"),
        (
            {"tool_choice": ToolChoice("required"), "params": {"tool_choice": "function_call"}},
            "function_call",
        ),
    ],
)
def test_functions_that_cannot_be(fields: dict[str, Any], param: str) -> None:
    assert tools_refusal(**fields).param == param


def test_a_schema_that_is_too_deep_to_write() -> None:
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"x": deep}
    assert tools_refusal(tools=(Tool("f", parameters=deep),)).param == "tools[0]"
    while deep:  # taken apart by hand: a whole one is too deep to free
        deep = deep["x"]


@pytest.mark.parametrize("budget", [-1, 51, 2**63])
def test_thinking_budgets(budget: int) -> None:
    request = GenerateRequest(
        messages=[{}], thinking_budget=budget, params={"thinking_budget": "budget_tokens"}
    )
    with pytest.raises(InvalidField) as caught:
        limits.check_thinking(request, INFO.max_model_len)
    assert caught.value.param == "budget_tokens"
    limits.check_thinking(GenerateRequest(thinking_budget=0), INFO.max_model_len)
    limits.check_thinking(GenerateRequest(), INFO.max_model_len)


# --- stops -----------------------------------------------------------------------------------


def test_stops_that_no_answer_can_hold() -> None:
    stops = ("a", "b" * 12, "c" * 13)
    assert limits.attainable(stops, 3, 4) == ("a", "b" * 12)


values = st.integers() | st.sampled_from([0, 1, 20, 100])


@given(
    logprobs=st.none() | values,
    prompt_logprobs=st.none() | values,
    prompt_logprobs_start=values,
    logit_bias=st.dictionaries(values, st.floats(), max_size=3),
    allowed_token_ids=st.lists(values, max_size=3).map(tuple),
    max_tokens=st.none() | values,
    may_be_empty=st.booleans(),
    num_prompt_tokens=st.integers(0, 60),
)
def test_what_passes_is_in_range_and_crosses_the_bridge(
    num_prompt_tokens: int, **fields: Any
) -> None:
    try:
        sampling = validate(num_prompt_tokens, **fields)
    except Exception as error:
        assert getattr(error, "status", None) == 400 and getattr(error, "param", None)
        return
    for value in (sampling.logprobs, sampling.prompt_logprobs):
        assert value is None or 0 <= value <= 20
    assert 0 <= sampling.prompt_logprobs_start <= num_prompt_tokens
    assert all(0 <= id < 100 and -100 <= bias <= 100 for id, bias in sampling.logit_bias)
    assert all(0 <= id < 100 for id in sampling.allowed_token_ids)
    assert 0 <= sampling.max_tokens <= INFO.max_model_len - num_prompt_tokens
    packed = msgspec.msgpack.encode(sampling)
    assert msgspec.msgpack.decode(packed, type=SamplingParams) == sampling


# --- as the service asks for them ------------------------------------------------------------


async def test_bad_words_in_tokens(engine: FakeEngine, service: Service) -> None:
    for num in (1, 20):  # so many are tokenised in a thread
        words = ("hi", " hi", *("xyz"[: 1 + i % 3] for i in range(num)))
        engine.will_say("a")
        await collect(await service.generate(GenerateRequest(text="x", bad_words=words)))
    expected = (tuple(b"hi"), tuple(b"x"))
    assert engine.submits[0].sampling.bad_words == expected
    assert engine.submits[1].sampling.bad_words == (*expected, tuple(b"xy"), tuple(b"xyz"))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": (Tool("a b"),)}, "tools[0]"),
        ({"tool_choice": ToolChoice("required")}, "tool_choice"),
        ({"thinking_budget": -1}, "thinking_budget"),
        ({"bad_words": ("",)}, "bad_words[0]"),
        ({"logprobs": 21}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"prompt_logprobs": 1, "prompt_logprobs_start": 10**6}, "prompt_logprobs_start"),
    ],
)
async def test_they_are_asked_on_every_way_in(
    engine: FakeEngine, service: Service, fields: dict[str, Any], param: str
) -> None:
    messages = [{"role": "user", "content": "hi"}]
    with pytest.raises(InvalidField) as caught:
        await service.generate(GenerateRequest(messages=messages, **fields))
    assert caught.value.param == param
    assert (service.inflight, engine.submits) == (0, [])


async def test_as_many_messages_as_could_fit(engine: FakeEngine, service: Service) -> None:
    assert engine.info is not None
    most = engine.info.max_model_len
    message = {"role": "user", "content": "hi"}
    with pytest.raises(PromptTooLong, match=f"{most + 1} messages") as caught:
        await service.generate(GenerateRequest(messages=[message] * (most + 1)))
    assert caught.value.param == "messages"


def test_the_log_probabilities_of_all_prompts_are_bounded() -> None:
    request, asked = GenerateRequest(), SamplingParams(prompt_logprobs=19)
    fits = limits.told.MAX_TOLD // 20
    limits.check_told(request, [(fits, asked), (10**9, SamplingParams())])
    later = msgspec.structs.replace(asked, prompt_logprobs_start=fits)
    limits.check_told(request, [(fits, asked), (fits, later)])
    with pytest.raises(InvalidField, match="log probabilities") as caught:
        limits.check_told(request, [(fits, asked), (1, asked)])
    assert caught.value.param == "prompt_logprobs"


def test_the_log_probabilities_of_all_answers_are_bounded() -> None:
    request = GenerateRequest(logprobs=19, params={"logprobs": "top_logprobs"})
    fits = SamplingParams(max_tokens=limits.told.MAX_TOLD // 20)
    limits.check_rated(request, [fits])
    limits.check_rated(GenerateRequest(), [fits, fits])
    with pytest.raises(InvalidField, match="lower top_logprobs or max_tokens") as caught:
        limits.check_rated(request, [fits, SamplingParams(max_tokens=1)])
    assert caught.value.param == "top_logprobs"


async def test_they_are_bounded_over_a_call(
    engine: FakeEngine, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits.told, "MAX_TOLD", 100)
    request = GenerateRequest(text="a b c d e", prompt_logprobs=9, max_tokens=1)
    many = [request] * 8
    with pytest.raises(InvalidField, match="lower prompt_logprobs"):
        await service.generate_all(many)
    assert service.inflight == 0
