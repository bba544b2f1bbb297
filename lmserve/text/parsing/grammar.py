"""Grammars of answers that call functions, in the form that the model's family writes calls.

`tools_grammar` gives llguidance's Lark. It is checked and compiled by who compiles all grammars.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence

from llguidance import regex_to_lark

from lmserve.text.parsing.forms import ARGS, CallForm
from lmserve.text.structures.source import HEADER, json_rule
from lmserve.types import Tool, ToolChoice

MAX_CALLS = 32  # in one answer, where a grammar is what makes them

# the ids of a mark that special tokens spell; (): it is text
MarkIds = Callable[[str], Sequence[int]]
Params = Mapping[str, str]  # `GenerateRequest.params`

_DEFAULT_PARAM = "tools[{}].function.parameters"


def needs_grammar(tools: Sequence[Tool], choice: ToolChoice) -> bool:
    """Whether calls must be held to what they may be. Free calls of functions are not."""
    if not tools or choice.mode == "none":
        return False
    return choice.mode == "required" or not choice.parallel or any(tool.strict for tool in tools)


def tools_grammar(
    form: CallForm,
    tools: Sequence[Tool],
    choice: ToolChoice,
    mark_ids: MarkIds,
    *,
    params: Params | None = None,
    answer: str | None = None,
) -> str | None:
    """What an answer with these functions must be. None: anything. `answer`: the Lark expression
    of what it is where it calls nothing (default: any text). Raises InvalidField, which names the
    function's parameters."""
    if answer is None and not needs_grammar(tools, choice):
        return None
    return _Lark(form, mark_ids).whole(tools, choice, params or {}, answer)


class _Lark:
    def __init__(self, form: CallForm, mark_ids: MarkIds):
        self._form = form
        self._mark_ids = mark_ids
        self._rules: list[str] = []

    def whole(
        self, tools: Sequence[Tool], choice: ToolChoice, params: Params, answer: str | None
    ) -> str:
        forced = choice.mode == "required"
        for index, tool in enumerate(tools):
            if choice.name in (None, tool.name):
                self._function(index, tool, params, bound=forced or tool.strict)
        names = [f"fn_{i}" for i, tool in enumerate(tools) if choice.name in (None, tool.name)]
        self._rules.append(f"function: {' | '.join(names)}")
        most = MAX_CALLS if choice.parallel else 1
        if forced:
            # what stands between the reasoning and a call, too
            self._rules.append("start: SPACE? calls")
            self._rules.append(r"SPACE: /\n{1,2}/")
            self._rules.append(f"calls: {self._calls(most)}")
        elif answer is not None:
            self._rules.append("start: calls | answer")
            self._rules.append(f"calls: {self._calls(most)}")
            self._rules.append(f"answer: {answer}")
        else:
            self._free(most)
        return HEADER + "\n".join(self._rules) + "\n"

    def _function(self, index: int, tool: Tool, params: Params, *, bound: bool) -> None:
        schema = tool.parameters if bound and tool.parameters else {"type": "object"}
        param = params.get("tool_parameters", _DEFAULT_PARAM).format(index)
        rule = json_rule({"type": "object", **schema}, param)
        form = self._form
        if form.named:
            head = f"{_text(tool.name)} {self._mark(ARGS)}"
            self._rules.append(f"fn_{index}: {head} {rule}")
            return
        head = f'{{"name": {json.dumps(tool.name)}, "{form.arguments}": '
        self._rules.append(f'fn_{index}: {_text(head)} {rule} "}}"')

    def _calls(self, most: int) -> str:
        """From the first mark on."""
        form = self._form
        if form.begin is None:
            listed = f' | "[" function {_more(_text(", ") + " function", most)} "]"'
            return f"function{listed if most > 1 else ''}"
        if form.whole:  # the mark need not be there
            return f"function {_more(_text(form.separator) + ' function', most)}"
        return f"{self._mark(form.begin)} {self._after_mark(most)}"

    def _after_mark(self, most: int) -> str:
        form = self._form
        assert form.begin is not None
        begin = self._mark(form.begin)
        if form.end is not None:
            end = self._mark(form.end)
            more = f'{_text(form.separator)} {begin} "\\n" function "\\n" {end}'
            return f'"\\n" function "\\n" {end} {_more(more, most)}'
        if form.named:
            return f"function {_more(f'{begin} function', most)}"
        return f'" "? "[" function {_more(_text(", ") + " function", most)} "]"'

    def _free(self, most: int) -> None:
        """Any text, in which calls are held to their schemas from their first mark on."""
        form, begin = self._form, self._form.begin
        if form.whole:
            marked = begin is not None and self._mark_ids(begin)
            lead = f"({self._mark(begin)})? " if begin and marked else ""
            self._rules.append("start: text? | calls")
            self._rules.append(r"text: /[^\s{\[`<](.|\n)*/")
            self._rules.append(f"calls: {lead}{self._calls(most)}")
            return
        assert begin is not None
        # the first call begins wherever its mark does; later ones follow it at once
        after = self._after_mark(most)
        if self._mark_ids(begin):
            self._rules.append(f"start: TEXT? | TEXT? {self._mark(begin)} {after}")
        else:
            self._rules.append(f"start: TEXT? | begun {after}")
            self._rules.append(f"begun[lazy]: /(.|\\n)*/ {_text(begin)}")
        no_mark = f"/(?s:.*){regex_to_lark(re.escape(begin))}(?s:.*)/"
        self._rules.append(rf"TEXT: /(.|\n)+/ & ~{no_mark}")

    def _mark(self, mark: str) -> str:
        return " ".join(f"<[{id}]>" for id in self._mark_ids(mark)) or _text(mark)


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _more(rule: str, most: int) -> str:
    """After the first of at most so many."""
    return f"({rule}){{0,{most - 1}}}" if most > 1 else ""
