"""`lmserve.LLM`: the engine in a script, against transformers and against the rules of requests."""

from __future__ import annotations

import signal
from typing import Any

import msgspec
import pytest

from lmserve import LLM, SamplingParams
from lmserve.errors import (
    EngineDied,
    EngineUnavailable,
    InvalidField,
    PromptTooLong,
    RequestError,
    SettingsError,
    Unsatisfiable,
)
from tests.e2e.conftest import TinyModel
from tests.offline.conftest import SMALL

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
MESSAGES = [{"role": "user", "content": "hi"}]
CHAT_IDS = [256, *b"user\nhi", 257, *b"\n", 256, *b"assistant\n"]


def test_texts_and_token_ids_are_answered_in_order_as_transformers_does(
    llm: LLM, tiny: TinyModel
) -> None:
    prompts = ["one two", [1, 2, 3], "three"]
    answers = llm.generate(prompts, GREEDY)
    assert [answer.prompt_token_ids for answer in answers] == [
        list(b"one two"), [1, 2, 3], list(b"three")
    ]  # fmt: skip
    for answer in answers:
        assert answer.token_ids == tiny.golden(answer.prompt_token_ids, 8)
        assert answer.text == llm.tokenizer.decode(answer.token_ids, skip_special=True)
        assert (answer.finish_reason, answer.stop_reason) == ("length", None)
        assert (answer.logprobs, answer.prompt_logprobs) == (None, None)
        assert len(answer.token_times_s) == 8
        assert 0 < answer.ttft_s <= answer.total_s


def test_answers_without_text_have_the_same_tokens(llm: LLM) -> None:
    bare = msgspec.structs.replace(GREEDY, detokenize=False)
    (whole,), (answer,) = llm.generate("one two", GREEDY), llm.generate("one two", bare)
    assert (answer.text, answer.token_ids) == ("", whole.token_ids)
    assert (answer.finish_reason, len(answer.token_times_s)) == ("length", 8)


def test_one_prompt_needs_no_list(llm: LLM) -> None:
    (by_text,) = llm.generate("one two", GREEDY)
    (by_ids,) = llm.generate(list(b"one two"), GREEDY)
    assert by_text.token_ids == by_ids.token_ids
    assert llm.generate([], GREEDY) == []


def test_each_prompt_may_have_its_own_sampling(llm: LLM) -> None:
    many = [SamplingParams(temperature=0, max_tokens=number) for number in (3, 1, 2)]
    answers = llm.generate(["a", "b", "c"], many)
    assert [len(answer.token_ids) for answer in answers] == [3, 1, 2]
    with pytest.raises(InvalidField, match="sampling has 3 entries for 2 prompts"):
        llm.generate(["a", "b"], many)


def test_the_same_seed_gives_the_same_answer(llm: LLM) -> None:
    seeded = SamplingParams(temperature=1, seed=7, max_tokens=16, ignore_eos=True)
    first, second = llm.generate(["a", "a"], seeded)
    assert first.token_ids == second.token_ids


def test_a_prompt_known_from_before_is_found(llm: LLM) -> None:
    prompt = list(range(100, 121))
    llm.generate(prompt, GREEDY)
    (again,) = llm.generate(prompt, GREEDY)
    assert again.num_cached_tokens == 20


def test_chat_goes_through_the_template(llm: LLM) -> None:
    (one,) = llm.chat(MESSAGES, GREEDY)
    assert one.prompt_token_ids == CHAT_IDS
    (plain,) = llm.generate(CHAT_IDS, GREEDY)
    assert one.token_ids == plain.token_ids
    two = llm.chat([MESSAGES, MESSAGES], GREEDY)
    assert [answer.token_ids for answer in two] == [one.token_ids] * 2


def test_a_stop_string_ends_the_answer_and_the_request(llm: LLM) -> None:
    (whole,) = llm.generate("one two", GREEDY)
    stop = whole.text[2:4]
    told = SamplingParams(temperature=0, max_tokens=100, ignore_eos=True, stop=stop)
    (answer,) = llm.generate("one two", told)
    assert answer.text == whole.text[: whole.text.index(stop)]
    assert (answer.finish_reason, answer.stop_reason) == ("stop", stop)
    assert whole.token_ids[: len(answer.token_ids)] == answer.token_ids


def test_a_stop_token_is_not_part_of_the_answer(llm: LLM) -> None:
    (whole,) = llm.generate("one two", GREEDY)
    end = whole.token_ids[3]
    told = SamplingParams(temperature=0, stop_token_ids=[end], ignore_eos=True, logprobs=0)
    (answer,) = llm.generate("one two", told)
    first = whole.token_ids.index(end)
    assert answer.token_ids == whole.token_ids[:first]
    assert (answer.finish_reason, answer.stop_reason) == ("stop", end)
    assert answer.logprobs is not None and len(answer.logprobs) == first


def test_log_probabilities_are_told_where_they_are_asked_for(llm: LLM) -> None:
    asked = SamplingParams(temperature=0, max_tokens=3, logprobs=2, prompt_logprobs=0)
    (answer,) = llm.generate([9, 8, 7], asked)
    assert answer.logprobs is not None and answer.prompt_logprobs is not None
    assert [each.token_id for each in answer.logprobs] == answer.token_ids
    assert [each.top_ids[0] for each in answer.logprobs] == answer.token_ids
    assert [each.token_id for each in answer.prompt_logprobs] == [8, 7]


@pytest.mark.parametrize(
    ("prompts", "sampling", "words"),
    [
        (["a", ""], {}, r"prompts\[1\] is empty"),
        (["a", []], {}, r"prompts\[1\] is empty"),
        (["a", [1, 10**6]], {}, r"prompts\[1\]\[1\] is 1000000: token ids go from 0 to"),
        (["a", 3.5], {}, r"prompts\[1\] must be a text or a list of token ids, not float"),
        (["a", ["b"]], {}, r"prompts\[1\] must be a text or a list of token ids, not list"),
        ("a", {"temperature": 3}, r"temperature is 3.0: it must be from 0"),
        ("a", {"temperature": "hot"}, r"temperature: expected `float \| null`, got `str`"),
        ("a", {"max_tokens": 0}, r"max_tokens is 0: it must be at least 1"),
        ("a", {"max_tokens": 2.5}, r"max_tokens: expected `int \| null`"),
        ("a", {"stop": [""]}, r"stop\[0\] is empty"),
        ("a", {"stop": ["b"], "detokenize": False}, r"stop is met in an answer's text"),
        ("a", {"stop": [1]}, r"stop\[0\]: expected `str`, got `int`"),
        ("a", {"logprobs": 50}, r"logprobs is 50: it must be from 0 to 20"),
        ("a", {"min_tokens": 600}, r"min_tokens is 600"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(
    llm: LLM, prompts: Any, sampling: dict[str, Any], words: str
) -> None:
    with pytest.raises(RequestError, match=words):
        llm.generate(prompts, SamplingParams(**sampling))


def test_a_prompt_that_fills_the_context_is_refused(llm: LLM) -> None:
    with pytest.raises(PromptTooLong, match=r"maximum context length is 512"):
        llm.generate(["a", [1] * 512], GREEDY)


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ("hi", r"messages\[0\] must be a message"),
        ([[]], r"messages\[0\] is empty"),
        ([{"content": "hi"}], r"messages\[0\].role must be a string"),
    ],
)
def test_a_conversation_that_is_none_is_refused(llm: LLM, messages: Any, words: str) -> None:
    with pytest.raises(InvalidField, match=words):
        llm.chat(messages, GREEDY)


def test_one_that_fails_ends_the_call_and_leaves_the_engine(llm: LLM) -> None:
    """After the first `a` the only token allowed is banned."""
    stuck = SamplingParams(temperature=0, allowed_token_ids=[97], bad_words=["aa"], max_tokens=4)
    with pytest.raises(Unsatisfiable, match=r"prompts\[1\]: no token may come next"):
        llm.generate(["one", "two"], [GREEDY, stuck])
    (answer,) = llm.generate("one", GREEDY)
    assert len(answer.token_ids) == 8


def test_ctrl_c_ends_the_call_after_the_step_and_leaves_the_engine(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = llm._engine._core
    assert core is not None
    steps, step = [], core.step

    def interrupted() -> Any:
        if len(steps) == 2:
            signal.raise_signal(signal.SIGINT)
        steps.append(step())
        return steps[-1]

    monkeypatch.setattr(core, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["one", "two"], GREEDY)
    assert len(steps) == 3
    assert not core.has_work()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    (answer,) = llm.generate("one", GREEDY)
    assert answer.finish_reason == "length"


def test_after_a_step_that_failed_as_a_whole_nothing_is_asked(
    tiny: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = LLM(tiny.path, **SMALL)
    monkeypatch.setattr(llm._engine._core, "step", lambda: [][0])
    with pytest.raises(EngineDied, match="the engine failed and is closed: list index"):
        llm.generate("one", GREEDY)
    with pytest.raises(EngineUnavailable, match="this LLM is closed: make another"):
        llm.generate("one", GREEDY)
    llm.close()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_batchsize": 3}, "LLM has no setting max_batchsize; did you mean max_batch_size"),
        ({"restart": True}, "LLM has no setting restart"),
        ({"max_batch_size": 0}, "max_batch_size must be a whole number at least 1, not 0"),
        ({"dtype": "int3"}, "dtype must be one of auto, float32"),
        ({"profile": "no/such/folder/trace.json"}, "profile: cannot write no/such/folder"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(
    tiny: TinyModel, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(SettingsError, match=words):
        LLM(tiny.path, **settings)
