"""Functions, calls and results, as chat templates show them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lmserve.errors import InvalidField, SettingsError
from lmserve.text.parsing.choice import answer_forms
from lmserve.text.template import ChatTemplate
from lmserve.text.tool_messages import Abilities
from lmserve.types import Tool
from tests.text import families

WEATHER = Tool("get_weather", "The weather.", {"type": "object", "properties": {"city": {}}})
USER = {"role": "user", "content": "Rain in Paris?"}


def call(arguments: Any, id: str = "call_0123456789abcdef") -> dict[str, Any]:
    function = {"name": "get_weather", "arguments": arguments}
    return {"id": id, "type": "function", "function": function}


def talk(arguments: Any) -> list[dict[str, Any]]:
    return [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call(arguments)]},
        {"role": "tool", "tool_call_id": "call_0123456789abcdef", "content": "15 degrees"},
    ]


def template(name: str) -> ChatTemplate:
    return ChatTemplate(families.ALL[name], bos_token="<s>", eos_token="</s>")


def render(name: str, messages: list[dict[str, Any]], *tools: Tool) -> str:
    form = answer_forms(families.ALL[name], "auto", "auto").calls
    return template(name).render(messages, tools=tools, form=form)


@pytest.mark.parametrize(
    "name,abilities",
    [
        ("qwen", Abilities(True, "object", True, False, True)),
        ("qwen-2.5", Abilities(True, "object", True, False, True)),
        ("llama", Abilities(True, "object", True, False, True)),
        ("mistral", Abilities(True, "object", True, True, False)),
        ("deepseek", Abilities(False, "text", True, False, True)),
        ("chatml", Abilities(False, None, True, False, True)),
        ("gemma", Abilities(False, None, False, False, False)),
    ],
)
def test_what_a_template_can_show_is_found_out(name: str, abilities: Abilities) -> None:
    assert template(name).abilities == abilities


@pytest.mark.parametrize("name", families.ALL)
def test_functions_are_told(name: str) -> None:
    rendered = render(name, [USER], WEATHER)
    assert "get_weather" in rendered and "The weather." in rendered
    assert "get_weather" not in render(name, [USER])


@pytest.mark.parametrize("name", families.ALL)
@pytest.mark.parametrize("arguments", ['{"city": "Paris"}', {"city": "Paris"}])
def test_calls_and_their_results_are_shown_once(name: str, arguments: Any) -> None:
    rendered = render(name, talk(arguments), WEATHER)
    assert rendered.count('{"city": "Paris"}') == 1  # not encoded twice
    assert "15 degrees" in rendered


@pytest.mark.parametrize("name", families.ALL)
@pytest.mark.parametrize("arguments", ['{"city": "Pa', "", "[1]", '"x"', None, "[" * 10_000])
def test_broken_arguments_do_not_block_the_chat(name: str, arguments: Any) -> None:
    assert "15 degrees" in render(name, talk(arguments), WEATHER)


@pytest.mark.parametrize("name", ["qwen", "mistral", "deepseek", "chatml", "gemma"])
def test_several_calls_at_once(name: str) -> None:
    calls = [call({"city": "Oslo"}, "call_1"), call({"city": "Rome"}, "call_2")]
    messages = [
        USER,
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "call_1", "content": "cold"},
        {"role": "tool", "tool_call_id": "call_2", "content": "warm"},
    ]
    rendered = render(name, messages, WEATHER)
    assert [rendered.index(word) for word in ("Oslo", "Rome", "cold", "warm")] == sorted(
        rendered.index(word) for word in ("Oslo", "Rome", "cold", "warm")
    )


def test_ids_of_calls_fit_the_template() -> None:
    rendered = render("mistral", talk({}), WEATHER)
    id = rendered.split('"id": "')[1][:9]
    assert id.isalnum() and f'"call_id": "{id}"' in rendered


def test_functions_without_a_template_for_them_are_told_in_the_system_message() -> None:
    system = {"role": "system", "content": "Be brief."}
    rendered = render("chatml", [system, USER], WEATHER)
    told = rendered.split("<|im_end|>")[0]
    assert told.startswith("<|im_start|>system\nBe brief.\n\nYou can call these functions")
    assert '{"name": "a_function", "arguments": {"an_argument": "a value"}}' in told
    in_user = render("gemma", [USER], WEATHER)
    assert in_user.startswith("<s><start_of_turn>user\nYou can call")
    assert in_user.count("<start_of_turn>") == 2


def test_results_have_the_name_of_the_function() -> None:
    assert "Result of get_weather:\n15 degrees" in render("gemma", talk({}), WEATHER)


@pytest.mark.parametrize("calls", [5, [5], [{}], [{"function": {"name": ""}}], ["x"]])
def test_calls_that_are_none_are_refused(calls: Any) -> None:
    message = {"role": "assistant", "content": "", "tool_calls": calls}
    with pytest.raises(InvalidField, match=r"messages\[1\]\.tool_calls"):
        render("qwen", [USER, message])


@pytest.mark.parametrize("calls", [None, []])
def test_no_calls_are_no_calls(calls: Any) -> None:
    message = {"role": "assistant", "content": "hi", "tool_calls": calls}
    assert render("llama", [USER, message]) == render(
        "llama", [USER, {"role": "assistant", "content": "hi"}]
    )


@pytest.mark.parametrize("name", families.ALL)
def test_what_follows_an_answer_of_calls(name: str) -> None:
    """The answer's own tokens are known: the rest goes on from them."""
    chat = template(name)
    form = answer_forms(families.ALL[name], "auto", "auto").calls
    messages = talk('{"city": "Paris"}')
    rest = chat.render_after(messages, 2, tools=[WEATHER], form=form)
    whole = render(name, messages, WEATHER)
    if rest is not None:
        assert "15 degrees" in rest and "Paris" not in rest
        assert whole.endswith(rest[rest.index("15 degrees") :])


def test_reasoning_of_earlier_answers_reaches_the_template() -> None:
    messages = [USER, {"role": "assistant", "content": "No.", "reasoning_content": "hm"}]
    assert "<think>\nhm\n</think>\n\nNo." in template("qwen").render(
        messages, add_generation_prompt=False
    )


@pytest.mark.parametrize(
    "name,calls,reasoning",
    [
        ("qwen", "hermes", "think"),
        ("qwen-2.5", "hermes", None),
        ("llama", "llama3", None),
        ("mistral", "mistral-list", None),
        ("deepseek", "json", "think"),
        ("chatml", "json", None),
        ("gemma", "json", None),
    ],
)
def test_forms_are_chosen_by_the_template(name: str, calls: str, reasoning: str | None) -> None:
    forms = answer_forms(families.ALL[name], "auto", "auto")
    assert forms.calls is not None and forms.calls.name == calls
    assert (forms.reasoning and forms.reasoning.name) == reasoning


def test_forms_by_name() -> None:
    forms = answer_forms(None, "qwen3", "deepseek-r1")
    assert forms.calls is not None and forms.calls.name == "hermes"
    assert forms.reasoning is not None and forms.reasoning.end == "</think>"
    forms = answer_forms(families.QWEN, "none", "None")
    assert forms.calls is None and forms.reasoning is None
    for setting in ({"tool_call_parser": "pythonic"}, {"reasoning_parser": "x"}):
        with pytest.raises(SettingsError, match="no parser has this name; give auto, none or"):
            answer_forms("", **{"tool_call_parser": "auto", "reasoning_parser": "auto", **setting})


def test_a_call_is_shown_as_the_model_writes_it() -> None:
    rendered = render("chatml", talk({"city": "Paris"}))
    written = rendered.split("<|im_start|>assistant\n")[1].split("<|im_end|>")[0]
    assert json.loads(written) == {"name": "get_weather", "arguments": {"city": "Paris"}}
