"""A model's answer as an attack on what reads it: it costs what its length says, and no more."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import pytest

from fuzz.answers import NAMES, told
from lmserve.text.output import OutputText
from lmserve.text.parsing.call_reader import MAX_HELD
from lmserve.text.parsing.calls import CallParser
from lmserve.text.parsing.forms import CALL_FORMS, THINK, CallForm
from lmserve.text.parsing.parser import AnswerParser
from lmserve.text.parsing.reasoning import ReasoningParser
from lmserve.text.tokenizer import Tokenizer
from tests.text.conftest import FAMILIES

FORMS = sorted(CALL_FORMS.values(), key=lambda form: form.name)
SIZE = 400  # characters; the other run has twice as many
SLACK = 100  # calls of functions that have nothing to do with the length

# What is repeated to make an answer, and what comes before it.
ATTACKS = {
    "angles": ("", "<"),
    "marks that never end": ("", "<tool_call>"),
    "half a mark": ("", "<tool_cal"),
    "thoughts in thoughts": ("<think>", "<think>"),
    "ends of thoughts": ("<think>", "</think"),
    "braces": ("", "{"),
    "lists": ("", "["),
    "objects in a call": ('<tool_call>{"name": "f", "arguments": ', '{"a":'),
    "lists in a call": ('<tool_call>{"name": "f", "arguments": {"a": ', "["),
    "one string": ('<tool_call>{"name": "f", "arguments": {"a": "', "x"),
    "escapes": ('<tool_call>{"name": "f", "arguments": {"a": "', '\\"'),
    "backslashes": ('<tool_call>{"name": "', "\\"),
    "a name": ('<tool_call>{"name": "', "f"),
    "named calls": ("", '[TOOL_CALLS]f[ARGS]{"a": 1}'),
    "keys": ("<tool_call>{", '"a": 1, '),
    "space": ("", " "),
    "space in a call": ("<tool_call>", "\n"),
    "space after a call": ('<tool_call>{"name": "f"}', "\t"),
    "fences": ("", "```"),
    "calls": ("", '<tool_call>{"name": "f", "arguments": {}}</tool_call>'),
    "plain calls": ("", '{"name": "f", "arguments": {}};'),
    "calls that are none": ("", '<tool_call>{"name": 1}'),
    "half surrogates": ('<tool_call>{"name": "f", "arguments": {"a": "', "\\ud800"),
}


def num_calls(work: Callable[[], object]) -> int:
    """How many functions it calls, Python's own too."""
    count = 0

    def heard(frame: FrameType, event: str, arg: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(heard)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


def parsers(form: CallForm) -> list[Callable[[], AnswerParser]]:
    return [
        lambda: CallParser(form, NAMES),
        lambda: ReasoningParser(THINK, CallParser(form, NAMES), begun=False),
    ]


def grows_as(work: Callable[[str], object], short: str, long: str) -> bool:
    """Whether twice as much text takes about twice as many calls, not four times as many."""
    first, second = (num_calls(lambda text=text: work(text)) for text in (short, long))
    return second <= 3 * first + SLACK


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_a_long_answer_costs_its_length(form: CallForm) -> None:
    """As it comes, a piece at a time: what is held between two pieces is a mark or a call's
    head, so that no piece is read again and again."""
    for what, (head, piece) in ATTACKS.items():
        short, long = (head + piece * (num // len(piece)) for num in (SIZE, 2 * SIZE))
        for make in parsers(form):

            def read(text: str, make: Callable[[], AnswerParser] = make) -> None:
                told(make(), (text[at : at + 7] for at in range(0, len(text), 7)))

            assert grows_as(read, short, long), (form.name, what)


def test_little_is_held() -> None:
    for what, (head, piece) in ATTACKS.items():
        text = head + piece * ((MAX_HELD + 20_000) // len(piece))
        pieces = [text[at : at + 9999] for at in range(0, len(text), 9999)]
        for form in FORMS if "calls" not in what else ():  # these tell much and hold nothing
            for make in parsers(form):
                parser = make()
                for each in pieces:
                    parser.push(each)
                num_held = sum(len(getattr(part, "text", "")) for part in parser.end())
                assert num_held <= MAX_HELD + 64, (form.name, what, num_held)


def test_a_million_angles() -> None:
    text = "<" * 10**6
    for form in FORMS:
        runs = told(CallParser(form, NAMES), [text])
        assert runs == [("Content", text)]


def test_what_a_call_says_is_never_run() -> None:
    """Arguments are passed on as they are written, whatever they say."""
    evil = "__import__('os').system('true')"
    for arguments in (json.dumps({"a": evil}), '{"a": ' + evil + "}", '{"__class__": []}'):
        call = f'<tool_call>{{"name": "f", "arguments": {arguments}}}</tool_call>'
        runs = told(CallParser(CALL_FORMS["hermes"], NAMES), [call])
        assert runs == [("call f", arguments)]


ENDLESS = ("a", "ab", "aab", "é", "😀", "<|")


@pytest.mark.parametrize("stops", [["aaaaab"], ["ab" * 40 + "c"], ["😀é"], ["<|end|>x", "a" * 200]])
def test_stop_strings_cost_the_answers_length(stops: Sequence[str]) -> None:
    for tokenizer in (make() for make in FAMILIES.values()):
        for piece in ENDLESS:
            ids = tokenizer.encode(piece * 100, add_special=False)[:100]

            def read(text: str, tokenizer: Tokenizer = tokenizer, ids: list[int] = ids) -> None:
                output = OutputText(tokenizer.detokenizer(skip_special=True), stops)
                for id in ids * len(text):
                    output.push((id,))
                output.end()

            assert grows_as(read, "x", "xx"), (piece, stops)


def test_split_characters_and_broken_bytes() -> None:
    """Bytes in any order become text of valid characters, once."""
    for tokenizer in (make() for make in FAMILIES.values()):
        for ids in ([*range(256)] * 2, [0xF0, 0x9F] * 200, [200] * 500):
            ids = [id % tokenizer.vocab_size for id in ids]
            detokenizer = tokenizer.detokenizer(skip_special=True)
            pieces = [detokenizer.push((id,)) for id in ids]
            text = "".join(pieces) + detokenizer.flush()
            text.encode()  # no half of a pair
            assert max(map(len, pieces)) <= 64
