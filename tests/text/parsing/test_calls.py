"""What each family's calls look like, and what is no call."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmserve.text.parsing.call_reader import MAX_HELD
from lmserve.text.parsing.calls import CallParser
from lmserve.text.parsing.forms import (
    CALL_FORMS,
    HERMES,
    INTERNLM,
    JSON,
    LLAMA3,
    MISTRAL_LIST,
    MISTRAL_NAMED,
    THINK,
    CallForm,
)
from lmserve.text.parsing.reasoning import ReasoningParser
from lmserve.types import CallArguments, CallBegun, Content
from tests.text.parsing.said import Said, said

NAMES = ("f", "get_weather")
CALL = '{"name": "f", "arguments": {"a": 1}}'


def told(form: CallForm, text: str) -> Said:
    return said(CallParser(form, NAMES), [text])


# --- well-formed answers, against a slow reading of the whole text

_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
_arguments = st.dictionaries(st.text(max_size=4), _values, max_size=3)
_calls = st.lists(st.tuples(st.sampled_from(NAMES), _arguments), min_size=1, max_size=3)


def written(form: CallForm, calls: list[tuple[str, dict]], indent: int | None, ascii: bool) -> str:
    def dumps(value: object) -> str:
        return json.dumps(value, indent=indent, ensure_ascii=ascii)

    objects = [dumps({"name": name, form.arguments: given}) for name, given in calls]
    match form.name:
        case "hermes" | "internlm":
            return "\n".join(f"{form.begin}\n{one}\n{form.end}" for one in objects)
        case "mistral":
            return "".join(f"[TOOL_CALLS]{name}[ARGS]{dumps(given)}" for name, given in calls)
        case "mistral-list":
            return f"[TOOL_CALLS] [{', '.join(objects)}]"
        case "llama3":
            return "; ".join(objects)
        case _:
            return objects[0] if len(objects) == 1 else f"```json\n[{', '.join(objects)}]\n```"


def oracle(form: CallForm, text: str) -> list[tuple[str, object]]:
    """Obvious and slow: for texts that hold nothing but calls."""
    decoder = json.JSONDecoder(strict=False)
    if form.name == "mistral":
        heads = r"\[TOOL_CALLS\](\w+)\[ARGS\]"
        found, pos = [], 0
        while match := re.compile(heads).match(text, pos):
            value, pos = decoder.raw_decode(text, match.end())
            found.append((match[1], value))
        return found
    found, pos = [], 0
    while (pos := text.find("{", pos)) >= 0:
        value, pos = decoder.raw_decode(text, pos)
        found.append((value["name"], value[form.arguments]))
    return found


@pytest.mark.parametrize("form", CALL_FORMS.values(), ids=lambda form: form.name)
@settings(max_examples=60, deadline=None)
@given(calls=_calls, indent=st.sampled_from([None, 2]), ascii=st.booleans())
def test_well_formed_calls(form: CallForm, calls, indent, ascii) -> None:
    text = written(form, calls, indent, ascii)
    whole = told(form, text)
    assert [(name, json.loads(given)) for name, given in whole.calls] == oracle(form, text) == calls
    assert whole.content == ""
    assert all(given in text for _, given in whole.calls)  # as the model wrote it


# --- each family

TEXTS = [
    (HERMES, f"Let me see.\n\n<tool_call>\n{CALL}\n</tool_call>", "Let me see."),
    (HERMES, f"<tool_call>{CALL}</tool_call>\nDone.", "Done."),
    (HERMES, f"<tool_call>\n{CALL}\n", ""),  # never closed
    (HERMES, f"<tool_call>[{CALL}]</tool_call>", ""),
    (LLAMA3, f"<|python_tag|>{CALL}", ""),
    (LLAMA3, '{"type": "function", "name": "f", "parameters": {"a": 1}}', ""),
    (MISTRAL_LIST, f"[TOOL_CALLS][{CALL}]", ""),
    (MISTRAL_NAMED, f"[TOOL_CALLS] [{CALL}]", ""),
    (MISTRAL_NAMED, '[TOOL_CALLS]f{"a": 1}', ""),
    (MISTRAL_NAMED, '[TOOL_CALLS]f[CALL_ID]abc123DEF[ARGS]{"a": 1}', ""),
    (MISTRAL_NAMED, 'So: [TOOL_CALLS]f[ARGS]{"a": 1}', "So:"),
    (INTERNLM, f"Well<|action_start|><|plugin|>\n{CALL}<|action_end|>\n", "Well"),
    (JSON, f"```json\n{CALL}\n```\nThere.", "There."),
    (JSON, f" \n[\n {CALL}\n]", ""),
    (JSON, f"```\n{CALL}```", ""),
]


@pytest.mark.parametrize("form,text,content", TEXTS)
def test_calls_and_what_is_said_beside_them(form: CallForm, text: str, content: str) -> None:
    whole = told(form, text)
    assert whole.calls == [("f", '{"a": 1}')]
    assert whole.content == content


@pytest.mark.parametrize(
    "form,text,arguments",
    [
        (HERMES, '<tool_call>{"name": "f"}</tool_call>', "{}"),
        (HERMES, '<tool_call>{"name": "f", "arguments": null}</tool_call>', "{}"),
        (HERMES, '<tool_call>{"arguments": {"a": [2]}, "name": "f"}</tool_call>', '{"a": [2]}'),
        (HERMES, '<tool_call>{"name": "f", "arguments": "{\\"a\\": 3}"}</tool_call>', '{"a": 3}'),
        (HERMES, '<tool_call>{"id": {"x": []}, "name": "f", "arguments": {}}', "{}"),
        # broken, after the name was told: as it is
        (HERMES, '<tool_call>{"name": "f", "arguments": {"a": tru}}</tool_call>', '{"a": tru}'),
        (HERMES, '<tool_call>{"name": "f", "arguments": {"a": 1</tool_call>', '{"a": 1'),
        (HERMES, '<tool_call>{"name": "f", "arguments": {"a": 1}</tool_call>', '{"a": 1}'),
        (HERMES, '<tool_call>{"name": "f", "arguments": {"a": "x', '{"a": "x'),
        # a mark in a string is the string's
        (
            HERMES,
            '<tool_call>{"name":"f","arguments":{"a":"</tool_call>"}}',
            '{"a":"</tool_call>"}',
        ),
        (JSON, '{"name": "f", "arguments": {"a": "}"}, "why": {"b": 1}}', '{"a": "}"}'),
    ],
)
def test_unusual_calls(form: CallForm, text: str, arguments: str) -> None:
    whole = told(form, text)
    assert whole.calls == [("f", arguments)]
    assert whole.content == ""


@pytest.mark.parametrize(
    "form,text",
    [
        (HERMES, "<tool_call>"),
        (HERMES, "<tool_call>\nnot JSON\n</tool_call>"),
        (HERMES, '<tool_call>{"name": 5, "arguments": {}}</tool_call>'),
        (HERMES, '<tool_call>{"name": "f", "arguments": [1]}</tool_call>'),
        (HERMES, '<tool_call>{"name": "f"'),
        (HERMES, '<tool_call>{"arguments": {}}</tool_call>'),
        (HERMES, '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>'),
        (HERMES, CALL),  # no mark
        (LLAMA3, '{"name": "f"}'),  # an object like any other
        (LLAMA3, '{"name": "unknown", "parameters": {}}'),
        (LLAMA3, '<|python_tag|>brave_search.call(query="x")'),
        (JSON, f"Here it is: {CALL}"),
        (JSON, '{"name": "Ada", "arguments": {"for": 1}}'),
        (JSON, "```python\nf(1)\n```"),
        (JSON, "[1, 2]"),
        (JSON, "``"),
        (MISTRAL_NAMED, "[TOOL_CALLS]"),
        (MISTRAL_NAMED, "[TOOL_CALLS]I think {so}"),
        (MISTRAL_NAMED, "[TOOL_CALLS]" + "f" * 600 + "{}"),
        (MISTRAL_LIST, 'see [TOOL_CALLS]f{"a": 1}'),
    ],
)
def test_what_is_no_call_is_text(form: CallForm, text: str) -> None:
    assert told(form, text).parts == [("content", text)]


def test_a_call_after_what_was_none() -> None:
    whole = told(HERMES, f"<tool_call>oh\n<tool_call>{CALL}</tool_call>")
    assert whole.parts == [("content", "<tool_call>oh"), ("call", "f", '{"a": 1}')]


def test_arguments_come_as_they_are_written() -> None:
    parser = CallParser(HERMES, NAMES)
    assert parser.push('<tool_call>{"name": "f", ') == []
    begun, first = parser.push('"arguments": {"a"')
    assert isinstance(begun, CallBegun) and begun.name == "f"
    assert first == CallArguments(0, '{"a"')
    assert parser.push(": 1") == [CallArguments(0, ": 1")]
    assert parser.push("}}\n</tool_") == [CallArguments(0, "}")]
    assert parser.push("call>") == parser.end() == []


def test_text_is_held_no_longer_than_it_may_be_a_mark() -> None:
    parser = CallParser(HERMES, NAMES)
    assert parser.push("a<tool") == [Content("a")]
    assert parser.push("box ") == [Content("<toolbox")]
    assert parser.push("b") == [Content(" b")]


# --- reasoning and calls


def test_calls_in_the_reasoning_are_reasoning() -> None:
    inner = CallParser(HERMES, NAMES)
    text = f"\nI may call <tool_call>{CALL}</tool_call>.\n</think>\n\n<tool_call>{CALL}</tool_call>"
    whole = said(ReasoningParser(THINK, inner, begun=True), [text])
    assert whole.reasoning == f"I may call <tool_call>{CALL}</tool_call>."
    assert whole.calls == [("f", '{"a": 1}')]
    assert whole.content == ""


@pytest.mark.parametrize("begun", [True, False])
def test_the_first_mark_may_be_said_all_the_same(begun: bool) -> None:
    parser = ReasoningParser(THINK, CallParser(HERMES), begun=begun)
    whole = said(parser, ["<think>hm</think>yes <think>"])
    assert whole.parts == [("reasoning", "hm"), ("content", "yes <think>")]


def test_an_answer_without_reasoning() -> None:
    parser = ReasoningParser(THINK, CallParser(HERMES), begun=False)
    assert not parser.in_reasoning
    assert said(parser, ["\n yes"]).parts == [("content", "\n yes")]


def test_reasoning_that_never_ends() -> None:
    parser = ReasoningParser(THINK, CallParser(HERMES), begun=True)
    assert said(parser, ["hm </thin"]).parts == [("reasoning", "hm </thin")]
    assert parser.in_reasoning


# --- hostile texts: each would take hours if it were not read once

BIG = 200_000
HOSTILE = [
    "<" * BIG,
    "<tool_call>" * (BIG // 11),
    "<tool_call>{" * (BIG // 12),
    '<tool_call>{"name": "f", "arguments": ' + '{"a": ' * (BIG // 6),
    '<tool_call>{"name": "f", "arguments": {"a": "' + '\\"' * (BIG // 2),
    '<tool_call>{"name": "' + "x" * BIG,
    '<tool_call>{"arguments": {"a": "' + "x" * BIG,
    '{"name": "f", "parameters": {' + "[" * BIG,
    "[TOOL_CALLS]" + "f" * BIG,
    "[TOOL_CALLS][" * (BIG // 13),
    "<think>" + "</think" * (BIG // 7),
    " " * BIG,
    "`" * BIG,
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text[:12]))
def test_hostile_texts_are_read_once(text: str) -> None:
    for form in (HERMES, LLAMA3, MISTRAL_NAMED, JSON):
        whole = said(ReasoningParser(THINK, CallParser(form, NAMES), begun=False), [text])
        length = len(whole.content) + len(whole.reasoning) + sum(len(a) for _, a in whole.calls)
        assert length >= len(text) - MAX_HELD


def test_hostile_texts_in_small_pieces() -> None:
    for text in HOSTILE:
        parser = ReasoningParser(THINK, CallParser(HERMES, NAMES), begun=False)
        pieces = [text[at : at + 4] for at in range(0, 20_000, 4)]
        assert said(parser, pieces) == said(
            ReasoningParser(THINK, CallParser(HERMES, NAMES), begun=False), ["".join(pieces)]
        )
