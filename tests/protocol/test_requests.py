"""Requests of the wire as the service reads them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from lmserve.errors import InvalidField
from lmserve.protocol.openai.chat import ChatCompletionRequest
from lmserve.protocol.openai.completions import CompletionRequest
from lmserve.types import GenerateRequest

HI = [{"role": "user", "content": "hi"}]


def chat(messages: Any, **fields: Any) -> GenerateRequest:
    return msgspec.convert({"messages": messages, **fields}, ChatCompletionRequest).to_generate()


def completion(prompt: Any, **fields: Any) -> list[GenerateRequest]:
    return msgspec.convert({"prompt": prompt, **fields}, CompletionRequest).to_generate()


def test_all_fields_arrive() -> None:
    request = chat(
        [{"role": "user", "content": "hi"}],
        model="m",
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=0.3,
        seed=4,
        max_tokens=5,
        min_tokens=2,
        stop=["a", "b"],
        stop_token_ids=[8],
        ignore_eos=True,
        skip_special_tokens=False,
        chat_template_kwargs={"x": 1},
        n=2,
        logprobs=True,
        top_logprobs=3,
        prompt_logprobs=4,
        logit_bias={"5": -1.5, "-6": 2},
        allowed_token_ids=[1, 2],
        bad_words=["no"],
        include_stop_str_in_output=True,
        thinking_token_budget=9,
        return_progress=True,
        stream=True,
    )
    assert request == GenerateRequest(
        model="m",
        messages=[{"role": "user", "content": "hi"}],
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=0.3,
        seed=4,
        max_tokens=5,
        min_tokens=2,
        stop=("a", "b"),
        stop_token_ids=(8,),
        ignore_eos=True,
        skip_special_tokens=False,
        chat_template_kwargs={"x": 1},
        n=2,
        logprobs=3,
        prompt_logprobs=4,
        logit_bias={5: -1.5, -6: 2},
        allowed_token_ids=(1, 2),
        bad_words=("no",),
        include_stop=True,
        thinking_budget=9,
        tell_progress=True,
        splits=True,
        params={"logprobs": "top_logprobs", "thinking_budget": "thinking_token_budget"},
    )


def test_newer_names_win() -> None:
    message = [{"role": "user", "content": "hi"}]
    assert chat(message, max_tokens=5, max_completion_tokens=6).max_tokens == 6
    assert chat(message, max_completion_tokens=6).max_tokens == 6
    assert chat(message, min_new_tokens=3).min_tokens == 3
    assert chat(message, min_new_tokens=3, min_tokens=0).min_tokens == 0
    assert chat(message, stop="x").stop == ("x",)


def test_messages_arrive_as_they_were_sent() -> None:
    """Without what was null; `lmserve.text.chat` makes them fit the template."""
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    request = chat(
        [
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": parts, "name": "Ann"},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
            {"role": "tool", "content": "4", "tool_call_id": "1"},
        ]
    )
    assert request.messages == [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": parts, "name": "Ann"},
        {"role": "assistant", "tool_calls": [{"id": "1"}]},
        {"role": "tool", "content": "4", "tool_call_id": "1"},
    ]


def test_a_session_id_is_a_handle_within_its_owner() -> None:
    for asked in (
        msgspec.convert({"messages": "hi", "session_id": 7}, ChatCompletionRequest),
        msgspec.convert({"prompt": "hi", "session_id": 7}, CompletionRequest),
    ):
        made = asked.to_generate("ann")
        request = made[0] if isinstance(made, list) else made
        assert (request.owner, request.session_id) == ("ann", 7)
    for none in (-1, None):
        assert chat("hi", session_id=none).session_id is None
    assert chat("hi", session_id=0).session_id == 0


def test_thinking_is_a_variable_of_the_template() -> None:
    message = [{"role": "user", "content": "hi"}]
    assert chat(message, enable_thinking=False).chat_template_kwargs == {"enable_thinking": False}
    asked = chat(message, enable_thinking=False, chat_template_kwargs={"enable_thinking": True})
    assert asked.chat_template_kwargs == {"enable_thinking": True}
    assert chat(message, enable_thinking=None).chat_template_kwargs == {}


def test_a_chat_of_token_ids() -> None:
    request = chat([], input_ids=[1, 2])
    assert (request.messages, request.token_ids) == (None, [1, 2])
    assert request.params["prompt"] == "input_ids"
    assert chat([], input_ids=[]).token_ids == []  # refused by the validator
    for messages in ("hi", [{"role": "user", "content": "hi"}]):
        with pytest.raises(InvalidField) as caught:
            chat(messages, input_ids=[1])
        assert caught.value.param == "input_ids"


def test_the_clients_names() -> None:
    message = [{"role": "user", "content": "hi"}]
    assert chat(message, max_tokens=5, min_tokens=1).params == {}
    assert chat(message, max_completion_tokens=5, min_new_tokens=1).params == {
        "max_tokens": "max_completion_tokens",
        "min_tokens": "min_new_tokens",
    }
    assert chat("raw").params == {"prompt": "messages"}
    for prompt in ("a", [1, 2]):
        assert completion(prompt)[0].params == {}
    for prompts in (["a", "b"], [[1], [2]]):
        named = [request.params["prompt"] for request in completion(prompts)]
        assert named == ["prompt[0]", "prompt[1]"]


@pytest.mark.parametrize("options", [{}, {"include_usage": True}])
def test_stream_options_go_with_stream_only(options: Any) -> None:
    for ask in (chat, completion):
        with pytest.raises(InvalidField) as caught:
            ask("hi", stream_options=options)
        assert caught.value.param == "stream_options"
        assert ask("hi", stream_options=None)
        assert ask("hi", stream_options=options, stream=True)


def test_a_string_of_messages_is_sent_as_it_is() -> None:
    request = chat("raw")
    assert (request.text, request.messages) == ("raw", None)


def test_prompts() -> None:
    assert [r.text for r in completion("a")] == ["a"]
    assert [r.text for r in completion(["a", "b"])] == ["a", "b"]
    assert [r.token_ids for r in completion([1, 2])] == [[1, 2]]
    assert [r.token_ids for r in completion([[1], [2, 3]])] == [[1], [2, 3]]
    assert completion("a")[0].max_tokens == 16
    assert completion("a", max_tokens=0)[0].max_tokens == 0  # refused by the validator


@pytest.mark.parametrize("prompt", [[], ["a", 1], [1, [2]]])
def test_prompts_that_make_no_sense(prompt: Any) -> None:
    with pytest.raises(InvalidField) as caught:
        completion(prompt)
    assert caught.value.param == "prompt"


@pytest.mark.parametrize(
    ("fields", "kwargs"),
    [
        ({"reasoning_effort": "low"}, {"reasoning_effort": "low"}),
        ({"reasoning_effort": "none"}, {"reasoning_effort": "none", "enable_thinking": False}),
        (
            {"reasoning_effort": "high", "chat_template_kwargs": {"reasoning_effort": "max"}},
            {"reasoning_effort": "max"},
        ),
    ],
)
def test_effort_is_a_variable_of_the_template(fields: Any, kwargs: Any) -> None:
    assert chat(HI, **fields).chat_template_kwargs == kwargs


def test_an_answer_that_is_begun() -> None:
    messages = [*HI, {"role": "assistant", "content": "Once"}]
    assert chat(messages, continue_final_message=True, add_generation_prompt=False).continues
    assert not chat(messages).continues
    for bad in (HI, [], "hi"):
        with pytest.raises(InvalidField) as caught:
            chat(bad, continue_final_message=True)
        assert caught.value.param == "continue_final_message"


def test_what_an_assistant_sent_back() -> None:
    """As the clients' own types dump a message."""
    dumped = {"role": "assistant", "content": None, "refusal": "no", "audio": None}
    assert chat([dumped]).messages == [{"role": "assistant", "content": "no"}]
    thought = {"role": "assistant", "content": "a", "reasoning_content": "b"}
    assert chat([thought]).messages == [thought]
    with pytest.raises(InvalidField) as caught:
        chat([*HI, {"role": "assistant", "audio": {"id": "x"}}])
    assert caught.value.param == "messages[1].audio"


def test_more_of_completions() -> None:
    (request,) = completion("a", echo=True, logprobs=2, max_tokens=0, prompt_logprobs=1)
    assert (request.logprobs, request.prompt_logprobs, request.may_be_empty) == (2, 2, True)
    (request,) = completion("a", logprobs=0)
    assert (request.logprobs, request.prompt_logprobs, request.may_be_empty) == (0, None, False)
    (request,) = completion("a", n=2, best_of=3)
    assert (request.n, request.best_of) == (2, 3)
    assert completion("a", stream=True, n=2, best_of=2, suffix="")


@pytest.mark.parametrize(
    ("ask", "fields", "param"),
    [
        (chat, {"top_logprobs": 2}, "top_logprobs"),
        (chat, {"functions": [{"name": "f"}]}, "functions"),
        (chat, {"add_generation_prompt": False}, "add_generation_prompt"),
        (chat, {"stream_interval": 0}, "stream_interval"),
        (chat, {"logit_bias": {"x": 1}}, "logit_bias"),
        (chat, {"logit_bias": {"1" * 5000: 1}}, "logit_bias"),
        (completion, {"suffix": "end"}, "suffix"),
        (completion, {"best_of": 2, "stream": True}, "best_of"),
    ],
)
def test_what_goes_not_together(ask: Any, fields: Any, param: str) -> None:
    with pytest.raises(InvalidField) as caught:
        ask(HI if ask is chat else "a", **fields)
    assert caught.value.param == param
