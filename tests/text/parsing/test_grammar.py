"""Grammars of calls, as llguidance obeys them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import pytest
from llguidance import LLTokenizer
from tokenizers import AddedToken
from tokenizers import Tokenizer as HfTokenizer

from lmserve.errors import InvalidField
from lmserve.grammars import load_tokenizer, new_matcher
from lmserve.text.parsing.calls import CallParser
from lmserve.text.parsing.forms import CALL_FORMS, HERMES, JSON, MISTRAL_NAMED, CallForm
from lmserve.text.parsing.grammar import needs_grammar, tools_grammar
from lmserve.text.structures.source import json_rule
from lmserve.types import Tool, ToolChoice
from tests.text.conftest import byte_level
from tests.text.parsing.said import said

SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "required": ["a"],
    "additionalProperties": False,
}
TOOLS = (Tool("f", parameters=SCHEMA, strict=True), Tool("g"))
MARKS = ["<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]"]
MARKS += ["<|action_start|>", "<|plugin|>", "<|action_end|>"]
REQUIRED, AUTO = ToolChoice("required"), ToolChoice("auto")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> tuple[HfTokenizer, LLTokenizer]:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    byte_level()._inner.save(str(path))
    inner = HfTokenizer.from_file(str(path))
    inner.add_special_tokens([AddedToken(mark, special=True) for mark in MARKS])
    inner.save(str(path))
    eos = inner.token_to_id("<|end|>")
    return inner, load_tokenizer(str(path), inner.get_vocab_size(), [eos])


@cache
def written(form: CallForm) -> dict[str, str]:
    """Calls of f, f and g, a false f, and f after some text."""
    f = f'{{"name": "f", "{form.arguments}": {{"a": 1}}}}'
    g = f'{{"name": "g", "{form.arguments}": {{"z": "x"}}}}'
    bad = f.replace('"a": 1', '"a": "one"')

    def marked(*calls: str) -> str:
        if form.name == "mistral":
            return "".join(
                f"[TOOL_CALLS]{call[10]}[ARGS]{call.split(': ', 2)[2][:-1]}" for call in calls
            )
        if form.name == "mistral-list":
            return f"[TOOL_CALLS] [{', '.join(calls)}]"
        if form.end:
            return form.separator.join(f"{form.begin}\n{call}\n{form.end}" for call in calls)
        if form.separator:
            return form.separator.join(calls)
        return calls[0] if len(calls) == 1 else f"[{', '.join(calls)}]"

    return {"one": marked(f), "two": marked(f, g), "false": marked(bad), "later": "So " + marked(f)}


def obeys(source: str, text: str, tokenizers: tuple[HfTokenizer, LLTokenizer]) -> bool:
    inner, tokenizer = tokenizers
    ids = [*inner.encode(text, add_special_tokens=False).ids, inner.token_to_id("<|end|>")]
    return new_matcher(tokenizer, source).validate_tokens(ids) == len(ids)


@pytest.mark.parametrize("form", CALL_FORMS.values(), ids=lambda form: form.name)
@pytest.mark.parametrize(
    "choice,right",
    [
        (REQUIRED, {"one", "two"}),
        (ToolChoice("required", "f"), {"one"}),
        (ToolChoice("required", parallel=False), {"one"}),
        (AUTO, {"one", "two", "later", "text"}),
        (ToolChoice("auto", parallel=False), {"one", "later", "text"}),
    ],
)
def test_what_an_answer_may_be(
    form: CallForm,
    choice: ToolChoice,
    right: set[str],
    tokenizers: tuple[HfTokenizer, LLTokenizer],
) -> None:
    def mark_ids(mark: str) -> Sequence[int]:
        ids = tokenizers[0].encode(mark, add_special_tokens=False).ids
        return ids if set(ids) <= set(tokenizers[0].get_added_tokens_decoder()) else ()

    source = tools_grammar(form, TOOLS, choice, mark_ids)
    assert source is not None
    texts = {**written(form), "text": "hello, world"}
    assert {name for name, text in texts.items() if obeys(source, text, tokenizers)} == right
    for name in right - {"text", "later"}:  # and it is what the parser reads
        calls = said(CallParser(form, ("f", "g"), fenced=False), texts[name]).calls
        assert [call[0] for call in calls] == (["f", "g"] if name == "two" else ["f"])


def test_free_calls_of_functions_need_none() -> None:
    assert not needs_grammar((Tool("g"),), AUTO)
    assert not needs_grammar(TOOLS, ToolChoice("none")) and not needs_grammar((), REQUIRED)
    assert tools_grammar(JSON, (Tool("g"),), AUTO, lambda mark: ()) is None


@pytest.mark.parametrize("form", [HERMES, MISTRAL_NAMED], ids=lambda form: form.name)
def test_a_call_or_an_answer_of_a_form(
    form: CallForm, tokenizers: tuple[HfTokenizer, LLTokenizer]
) -> None:
    source = tools_grammar(
        form, TOOLS, AUTO, lambda mark: tokenizers[0].encode(mark).ids,
        answer=json_rule(SCHEMA, "response_format"),
    )  # fmt: skip
    assert source is not None
    texts = {**written(form), "json": '{"a": 1}', "text": "hello"}
    right = {name for name, text in texts.items() if obeys(source, text, tokenizers)}
    assert right == {"one", "two", "json"}


def test_marks_that_are_text(tokenizers: tuple[HfTokenizer, LLTokenizer]) -> None:
    form = CallForm("text", "CALL", "DONE")
    source = tools_grammar(form, TOOLS, AUTO, lambda mark: ())
    call = '{"name": "f", "arguments": {"a": 1}}'
    assert source is not None
    assert obeys(source, f"So CALL\n{call}\nDONE", tokenizers)
    assert obeys(source, "So CAL", tokenizers)
    assert not obeys(source, "So CALL me", tokenizers)


def test_a_schema_that_is_not_supported_is_named() -> None:
    tools = (Tool("f"), Tool("g", parameters={"type": "object", "not": {}}))
    with pytest.raises(InvalidField) as error:
        tools_grammar(JSON, tools, REQUIRED, lambda mark: ())
    assert error.value.param == "tools[1].function.parameters"
    with pytest.raises(InvalidField) as error:
        params = {"tool_parameters": "tools[{}].input_schema"}
        tools_grammar(JSON, tools, REQUIRED, lambda mark: (), params=params)
    assert error.value.param == "tools[1].input_schema"
