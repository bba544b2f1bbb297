"""What the answer has to be, written as the grammar that llguidance reads."""

from __future__ import annotations

import json
from typing import Any

from llguidance import regex_to_lark
from llguidance.gbnf_to_lark import gbnf_to_lark

from lmserve.errors import InvalidField
from lmserve.text.structures.schema import checked_schema, pattern_problem
from lmserve.types import Structure

MAX_REGEX_CHARS = 20_000
MAX_GRAMMAR_CHARS = 64 * 1024
MAX_RULES = 500  # a chain of them is followed by recursion
MAX_CHOICES = 10_000
MAX_CHOICE_CHARS = 256 * 1024

# Without "forcing" a text that is the only one possible is not written in one go, in the
# tokenizer's own way: each mask takes the same short time, however long that text is.
HEADER = '%llguidance {"no_forcing": true}\n'
# Whitespace as in Python's `json.dumps`, and nothing else: a model cannot wander in it.
_JSON = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "lenient": False,
    "coerce_one_of": False,
}


def source_of(structure: Structure) -> str:
    """Checked for size and shape, not yet compiled. Raises InvalidField."""
    value, param = structure.value, structure.param
    match structure.kind:
        case "json_object":
            return HEADER + f"start: {json_rule({'type': 'object'}, param)}\n"
        case "json_schema":
            return HEADER + f"start: {json_rule(value, param)}\n"
        case "regex":
            return HEADER + f"start: /{_regex(value, param)}/\n"
        case "choice":
            # one terminal: its size costs nothing at each step
            return HEADER + f"start: CHOICE\nCHOICE: {_choice(value, param)}\n"
        case "grammar":
            return (
                _grammar(value, param) + "\n" + HEADER
            )  # after it, so that line numbers are right


def json_rule(schema: object, param: str) -> str:
    """A Lark expression of the documents of this schema. Raises InvalidField."""
    checked = checked_schema(schema, param)
    return "%json " + json.dumps({**checked, "x-guidance": _JSON}, ensure_ascii=True)


def _regex(pattern: Any, param: str) -> str:
    _check_text(pattern, param)
    problem = pattern_problem(pattern, MAX_REGEX_CHARS)
    if problem is not None:
        raise InvalidField(f"{param} {problem}", param=param)
    return regex_to_lark(pattern)


def _choice(choices: Any, param: str) -> str:
    if not isinstance(choices, list | tuple) or not choices:
        raise InvalidField(f"{param} must be a list of at least one text", param=param)
    if len(choices) > MAX_CHOICES:
        raise InvalidField(
            f"{param} has {len(choices)} texts: give at most {MAX_CHOICES}", param=param
        )
    for index, choice in enumerate(choices):
        _check_text(choice, f"{param}[{index}]")
    if sum(map(len, choices)) > MAX_CHOICE_CHARS:
        raise InvalidField(
            f"{param} is too large: at most {MAX_CHOICE_CHARS} characters are taken", param=param
        )
    # Lark's strings are JSON's, less what JSON writes as two halves of a pair
    return " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)


def _grammar(grammar: Any, param: str) -> str:
    _check_text(grammar, param)
    if len(grammar) > MAX_GRAMMAR_CHARS:
        raise InvalidField(
            f"{param} has {len(grammar)} characters: give at most {MAX_GRAMMAR_CHARS}",
            param=param,
        )
    if "::=" in grammar:
        try:
            grammar = gbnf_to_lark(grammar).replace("%llguidance {}\n", "", 1)
        except Exception as error:  # RecursionError, its own, and what its slips raise
            text = str(error).partition("\n")[0][:200]
            raise InvalidField(
                f"{param} is not GBNF as it is read here: {text}", param=param
            ) from None
    for directive in ("%llguidance", "%json"):
        if directive in grammar:
            raise InvalidField(
                f"{param} has {directive}, which is not taken here: for JSON, give its schema",
                param=param,
            )
    if grammar.count(":") > MAX_RULES:
        raise InvalidField(
            f"{param} has more than {MAX_RULES} rules (or colons): make it smaller", param=param
        )
    problem = pattern_problem(grammar, MAX_GRAMMAR_CHARS)
    if problem is not None:
        raise InvalidField(f"{param} {problem}", param=param)
    return str(grammar)


def _check_text(value: Any, param: str) -> None:
    if not isinstance(value, str) or not value:
        raise InvalidField(f"{param} must be a text that is not empty", param=param)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidField(
            f"{param} holds half of a surrogate pair, which is not valid Unicode", param=param
        ) from None
