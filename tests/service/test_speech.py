"""Reasoning and calls of a model that says what the test wants: how they are asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmserve.bridge.fake import FakeEngine
from lmserve.errors import InvalidField
from lmserve.sampling import Grammar, SamplingParams
from lmserve.service.prompt import ModelText
from lmserve.settings import ServerSettings, Settings
from lmserve.text.parsing.calls import CallParser
from lmserve.text.parsing.reasoning import ReasoningParser
from lmserve.types import GenerateRequest, History, Structure, Tool, ToolChoice
from tests.text.families import CHATML, DEEPSEEK, LLAMA, QWEN

HI = [{"role": "user", "content": "hi"}]
TOOL = Tool("f")
SAMPLING = SamplingParams()
OFF = {"enable_thinking": False}


def model_text(engine: FakeEngine, folder: Path, template: str, **server: str) -> ModelText:
    file = folder / f"{len(list(folder.iterdir()))}.jinja"  # a file is read once
    file.write_text(template)
    assert engine.info is not None
    return ModelText(
        engine.info, Settings(server=ServerSettings(chat_template=str(file), **server))
    )


def asked(**fields) -> GenerateRequest:
    return GenerateRequest(**{"messages": HI, "splits": True, **fields})


def parser_of(text: ModelText, request: GenerateRequest):
    return text.parser(request, text.token_ids(request))


def test_a_parser_where_there_is_something_to_tell_apart(engine: FakeEngine, tmp_path: Path):
    plain = model_text(engine, tmp_path, CHATML)
    assert parser_of(plain, asked()) is None
    assert parser_of(plain, asked(tools=(TOOL,), splits=False)) is None
    assert parser_of(plain, asked(tools=(TOOL,), tool_choice=ToolChoice("none"))) is None
    assert isinstance(parser_of(plain, asked(tools=(TOOL,))), CallParser)


def test_a_parser_of_reasoning(engine: FakeEngine, tmp_path: Path):
    text = model_text(engine, tmp_path, QWEN)
    parser = parser_of(text, asked())
    assert isinstance(parser, ReasoningParser) and not parser.in_reasoning
    assert parser_of(text, asked(chat_template_kwargs=OFF)) is None  # it is over
    none = model_text(engine, tmp_path, QWEN, reasoning_parser="none")
    assert parser_of(none, asked()) is None
    begun = model_text(engine, tmp_path, DEEPSEEK)
    parser = parser_of(begun, asked())
    assert isinstance(parser, ReasoningParser) and parser.in_reasoning
    assert parser_of(begun, asked(messages=None, text="x", splits=False)) is None


@pytest.mark.parametrize(
    "said,begun", [("<think>hm", True), ("<think>hm</think>So", None), ("So", None), ("", False)]
)
def test_an_answer_that_goes_on(
    engine: FakeEngine, tmp_path: Path, said: str, begun: bool | None
) -> None:
    text = model_text(engine, tmp_path, QWEN)
    request = asked(messages=[*HI, {"role": "assistant", "content": said}], continues=True)
    parser = parser_of(text, request)
    assert (parser and parser.in_reasoning) == begun
    prompt = text.token_ids(asked())
    ids = prompt + text.tokenizer.encode(said, add_special=False)
    request = asked(messages=None, token_ids=ids, history=History(prompt, 1), continues=True)
    parser = parser_of(text, request)
    assert parser is not None
    parser.push(said)  # it reads what was said first
    assert parser.in_reasoning == bool(begun)


def test_where_a_grammar_begins(engine: FakeEngine, tmp_path: Path) -> None:
    text = model_text(engine, tmp_path, QWEN)
    free, bound = asked(), asked(tools=(TOOL,), tool_choice=ToolChoice("required"))
    assert not text.tokenizer.decode(text.token_ids(free), skip_special=False).endswith("<think>\n")
    ids = text.token_ids(bound)
    assert text.tokenizer.decode(ids, skip_special=False).endswith("<think>\n")
    sampling = SamplingParams(grammar=Grammar(text.speech.calls_source(bound) or ""))
    placed = text.speech.placed(bound, sampling, ids)
    assert placed.grammar is not None
    assert text.tokenizer.decode(list(placed.grammar.after), skip_special=False) == "</think>"
    unthinking = asked(structure=Structure("json_object"), chat_template_kwargs=OFF)
    ids = text.token_ids(unthinking)
    placed = text.speech.placed(unthinking, sampling, ids)
    assert placed.grammar is not None and placed.grammar.after == ()


def test_a_thinking_budget(engine: FakeEngine, tmp_path: Path) -> None:
    request = asked(thinking_budget=5)
    with pytest.raises(InvalidField, match="this model does not think"):
        model_text(engine, tmp_path, CHATML).speech.placed(request, SAMPLING, [1])
    text = model_text(engine, tmp_path, QWEN)
    thinking = text.speech.placed(request, SAMPLING, text.token_ids(request)).thinking
    assert thinking is not None and thinking.max_tokens == 5
    assert text.tokenizer.decode(list(thinking.start_ids), skip_special=False) == "<think>"
    over = asked(thinking_budget=5, chat_template_kwargs=OFF)
    assert text.speech.placed(over, SAMPLING, text.token_ids(over)).thinking is None
    begun = model_text(engine, tmp_path, DEEPSEEK)
    thinking = begun.speech.placed(request, SAMPLING, begun.token_ids(request)).thinking
    assert thinking is not None and thinking.start_ids == ()


def test_what_excludes_each_other(engine: FakeEngine, tmp_path: Path) -> None:
    text = model_text(engine, tmp_path, LLAMA)
    speech = text.speech
    structure = Structure("json_object")
    forced = ToolChoice("required")
    with pytest.raises(InvalidField, match="exclude each other"):
        speech.calls_source(asked(tools=(TOOL,), tool_choice=forced, structure=structure))
    with pytest.raises(InvalidField, match="cannot be combined with tools on this model"):
        speech.calls_source(asked(tools=(TOOL,), structure=structure))
    with pytest.raises(InvalidField, match="this answer has begun"):
        speech.calls_source(asked(tools=(TOOL,), tool_choice=forced, continues=True))
    marked = model_text(engine, tmp_path, QWEN).speech
    assert marked.calls_source(asked(tools=(TOOL,), structure=structure)) is not None
    with pytest.raises(InvalidField, match="but for JSON"):
        marked.calls_source(asked(tools=(TOOL,), structure=Structure("regex", "a+")))


def test_tools_are_refused_where_calls_are_not_read(engine: FakeEngine, tmp_path: Path) -> None:
    text = model_text(engine, tmp_path, QWEN, tool_call_parser="none")
    with pytest.raises(InvalidField, match="does not read calls"):
        text.token_ids(asked(tools=(TOOL,)))
    assert text.token_ids(asked(tools=(TOOL,), tool_choice=ToolChoice("none")))


def test_marks_are_seen_by_the_parser_alone(engine: FakeEngine, tmp_path: Path) -> None:
    text = model_text(engine, tmp_path, CHATML)
    special = text.tokenizer.decode([next(iter(text.tokenizer.special_ids))], skip_special=False)
    ids = text.tokenizer.encode(f"a{special}b", add_special=False)
    hidden = text.tokenizer.detokenizer(skip_special=True)
    shown = text.tokenizer.detokenizer(skip_special=True, shown=frozenset([special]))
    assert hidden.push(ids) == "ab" and shown.push(ids) == f"a{special}b"
