"""However a text is cut, a parser tells the same of it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmserve.text.parsing.calls import CallParser
from lmserve.text.parsing.forms import CALL_FORMS, REASONING_FORMS, THINK, CallForm
from lmserve.text.parsing.parser import AnswerParser
from lmserve.text.parsing.reasoning import PlainParser, ReasoningParser
from tests.text.parsing.said import cut, said

NAMES = ("f", "get_weather")
FORMS = sorted(CALL_FORMS.values(), key=lambda form: form.name)


def parsers(form: CallForm) -> list[AnswerParser]:
    """One for a model that does not think, one for one that may, one where it has begun to."""
    return [
        CallParser(form, NAMES),
        ReasoningParser(THINK, CallParser(form, NAMES), begun=False),
        ReasoningParser(THINK, CallParser(form, NAMES), begun=True),
    ]


def hostile(form: CallForm) -> st.SearchStrategy[str]:
    """Marks, halves of marks, JSON and what is nearly JSON, in any order."""
    pieces = [
        *form.marks,
        *(mark[: len(mark) // 2] for mark in form.marks),
        *("<think>", "</think>", "<thi", "</", "<", "```", "```json\n", "`", ";", ",", "[", "]"),
        *('{"name": "f", "arguments": {"a": [1, "}]"]}}', '{"name": "f"}', '{"name": "g"'),
        *('{"arguments": {"b": "<"}, "name": "f"}', '{"name": "f", "parameters": "{\\"c\\": 2}"}'),
        *('{"name"', ': "f",', '"arguments"', ": {", "}", "{", '"', "\\", '\\"', " ", "\n\n", "é"),
        *('{"name": "f", "arguments": {"a": ', "f[ARGS]{", "f", "null", "1e9", " " * 40, "text"),
    ]
    return st.lists(st.sampled_from(pieces) | st.text(max_size=3), max_size=14).map("".join)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_the_cut_does_not_matter(form: CallForm, data: st.DataObject) -> None:
    text = data.draw(hostile(form))
    places = data.draw(st.lists(st.integers(0, 400), max_size=8))
    for whole, cuts, single in zip(parsers(form), parsers(form), parsers(form), strict=True):
        expected = said(whole, [text])
        assert said(cuts, cut(text, places)) == expected
        assert said(single, text) == expected  # a character at a time


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@settings(max_examples=60, deadline=None)
@given(text=st.text("ab \n.é", max_size=80))
def test_text_without_a_call_is_told_as_it_is(form: CallForm, text: str) -> None:
    whole = said(CallParser(form, NAMES), text)
    assert whole.parts == ([("content", text)] if text else [])


@pytest.mark.parametrize("reasoning", REASONING_FORMS.values(), ids=lambda form: form.name)
def test_other_marks_of_reasoning(reasoning) -> None:
    text = f"{reasoning.begin}\nhm{reasoning.end}\n\nyes"
    whole = said(ReasoningParser(reasoning, PlainParser(), begun=False), text)
    assert whole.parts == [("reasoning", "hm"), ("content", "yes")]
