"""What tells an answer's calls and reasoning apart, on a model's worst text: it never raises, tells
the same however the text is cut, and no more than there is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from lmserve.text.parsing.calls import CallParser
from lmserve.text.parsing.forms import CALL_FORMS, REASONING_FORMS
from lmserve.text.parsing.parser import AnswerParser
from lmserve.text.parsing.reasoning import PlainParser, ReasoningParser
from lmserve.types import CallArguments, CallBegun, Part

NAMES = ("f", "get_weather")
FORMS = (*CALL_FORMS.values(), None)
REASONING = tuple(REASONING_FORMS.values())
MARKS = sorted(
    {mark for form in CALL_FORMS.values() for mark in form.marks}
    | {mark for form in REASONING for mark in (form.begin, form.end)}
)
TEXTS = (
    *MARKS,
    *(mark[:-1] for mark in MARKS),
    '{"name": "f", "arguments": {"a": [1, "}]"]}}',
    '{"arguments": {"b": "<"}, "name": "f"}',
    '{"name": "f", "parameters": "{\\"c\\": 2}"}',
    'f[ARGS]{"a": "\\"}"}',
    '{"name": "f", "arguments": {"a": "\\ud800',
    "```json\n",
    "```",
    "\n\n",
    " " * 40,
    "; ",
    "[",
    "]",
    "é€😀",
)
WORDS = tuple(text.encode() for text in TEXTS)


def seeds() -> list[bytes]:
    """Two bytes choose the parser and the cuts; text follows."""
    bodies = ["<think>hm</think>\n" + text + text for text in TEXTS]
    return [
        bytes([kind, size]) + body.encode()
        for size, body in enumerate(bodies, 1)
        for kind in (size, 5 * size)
    ]


def check(data: bytes) -> None:
    kind, size = (*data[:2], 0, 1)[:2]
    text = data[2:].decode("utf-8", "replace")
    whole = told(parser(kind), [text])
    assert told(parser(kind), cut(text, 1 + size % 7)) == whole
    assert told(parser(kind), text) == whole  # a character at a time
    if not any(kind.startswith("call ") for kind, _ in whole):
        said = "".join(run for _, run in whole)
        assert is_part(said, text) if isinstance(parser(kind), ReasoningParser) else said == text


def is_part(said: str, text: str) -> bool:
    """Whether it is the text with something left out."""
    rest = iter(text)
    return all(char in rest for char in said)


def parser(kind: int) -> AnswerParser:
    form = FORMS[kind % len(FORMS)]
    calls = PlainParser() if form is None else CallParser(form, NAMES, fenced=kind % 2 == 0)
    thinking = kind // len(FORMS) % (len(REASONING) + 1)
    if thinking == len(REASONING):
        return calls
    return ReasoningParser(REASONING[thinking], calls, begun=kind % 3 == 0)


def cut(text: str, size: int) -> Iterator[str]:
    return (text[at : at + size] for at in range(0, len(text), size))


def told(parser: AnswerParser, pieces: Iterable[str]) -> list[tuple[str, str]]:
    """Runs of what it tells: what they are, and their text."""
    runs: list[tuple[str, str]] = []
    num_in = 0
    for piece in pieces:
        num_in += len(piece)
        for part in parser.push(piece):
            _add(runs, part)
    for part in parser.end():
        _add(runs, part)
    assert sum(len(text) for _, text in runs) <= num_in
    assert parser.num_calls == sum(kind.startswith("call ") for kind, _ in runs)
    return runs


def _add(runs: list[tuple[str, str]], part: Part) -> None:
    match part:
        case CallBegun():
            assert part.name
            runs.append((f"call {part.name}", ""))
            return
        case CallArguments():
            kind = runs[-1][0]
            assert kind.startswith("call ")  # nothing comes between
        case _:
            kind = type(part).__name__
    if runs and runs[-1][0] == kind:
        kind, before = runs.pop()
        runs.append((kind, before + part.text))
    else:
        runs.append((kind, part.text))
