"""How the served model thinks and calls functions: what tells it apart, and what holds it to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import msgspec

from lmserve.errors import InvalidField
from lmserve.sampling import SamplingParams, Thinking
from lmserve.service.limits.field import name_of
from lmserve.text.parsing.calls import CallParser
from lmserve.text.parsing.choice import AnswerForms
from lmserve.text.parsing.forms import ReasoningForm
from lmserve.text.parsing.grammar import needs_grammar, tools_grammar
from lmserve.text.parsing.parser import AnswerParser
from lmserve.text.parsing.reasoning import PlainParser, ReasoningParser
from lmserve.text.structures.source import json_rule
from lmserve.text.tokenizer import Tokenizer
from lmserve.types import GenerateRequest, Structure, Tool

# Where an answer is when its first token is chosen: it may think, it has begun to, it has done so.
Place = Literal["may", "begun", "over"]

_TAIL = 32  # tokens of a prompt in which reasoning begins or is declared over


class Speech:
    """Of one model's text. No asyncio."""

    def __init__(self, tokenizer: Tokenizer, forms: AnswerForms):
        self.forms = forms
        self._tokenizer = tokenizer

    def tools(self, request: GenerateRequest) -> tuple[Tool, ...]:
        """Those that the model is told of. Raises InvalidField where their calls are not read."""
        if not request.tools or request.tool_choice.mode == "none":
            return ()
        if self.forms.calls is None:
            param = name_of(request, "tools")
            raise InvalidField(
                f"{param} cannot be served: this server does not read calls "
                "(--tool-call-parser none); leave them out",
                param=param,
            )
        return request.tools

    def parser(self, request: GenerateRequest, prompt_ids: Sequence[int]) -> AnswerParser | None:
        """What tells the parts of this answer apart. None: all of it is text. Where the answer
        goes on from tokens, it is to read what those said first."""
        if not request.splits:
            return None
        tools, calls = self.tools(request), None
        if tools and self.forms.calls is not None:
            # a grammar knows nothing of Markdown
            bound = needs_grammar(tools, request.tool_choice) or request.structure is not None
            names = {tool.name for tool in tools}
            calls = CallParser(self.forms.calls, names, fenced=not bound)
        reasoning = self.forms.reasoning
        if request.continues and request.history is not None:
            prompt_ids = request.history.token_ids
            request = dataclasses.replace(request, continues=False)
        if reasoning is None or (place := self._place(request, prompt_ids, reasoning)) == "over":
            return calls
        return ReasoningParser(reasoning, calls or PlainParser(), begun=place == "begun")

    def calls_source(self, request: GenerateRequest) -> str | None:
        """The grammar of an answer with these tools. None: they ask for none. Raises
        InvalidField."""
        tools, form, choice = self.tools(request), self.forms.calls, request.tool_choice
        if not tools or form is None:
            return None
        forced = choice.mode == "required"
        if request.continues:
            if not forced:
                return None
            raise InvalidField(
                "tool_choice asks for a call, and this answer has begun: choose auto or none, or "
                "begin the answer anew",
                param=name_of(request, "tool_choice"),
            )
        answer = None
        if (structure := request.structure) is not None:
            if forced:
                raise InvalidField(
                    f"{structure.param} and a tool_choice that asks for a call exclude each "
                    "other: leave one out",
                    param=structure.param,
                )
            answer = _answer_rule(structure, whole=form.whole)
        return tools_grammar(
            form, tools, choice, self._special_ids, params=request.params, answer=answer
        )

    def prompt_end(self, request: GenerateRequest, prompt_ids: Sequence[int]) -> list[int]:
        """Tokens that go after the prompt: where a grammar binds what follows the reasoning, it
        must be known when that is, so that it begins here."""
        form = self.forms.reasoning
        if form is None or request.continues or request.messages is None:
            return []
        tools = self.tools(request)
        if request.structure is None and not needs_grammar(tools, request.tool_choice):
            return []
        if self._place(request, prompt_ids, form) != "may":
            return []
        return self._tokenizer.encode_further(form.begin + "\n")

    def placed(
        self, request: GenerateRequest, sampling: SamplingParams, prompt_ids: Sequence[int]
    ) -> SamplingParams:
        """And with what needs to know where the reasoning ends. Raises InvalidField."""
        budget, grammar = request.thinking_budget, sampling.grammar
        if budget is None and grammar is None:
            return sampling
        form = self.forms.reasoning
        if form is None:
            if budget is None:
                return sampling
            param = name_of(request, "thinking_budget")
            raise InvalidField(f"{param}: this model does not think; leave it out", param=param)
        place = self._place(request, prompt_ids, form)
        thinking = None
        end_ids = tuple(self._tokenizer.encode_further(form.end))
        if grammar is not None and place == "begun":
            grammar = msgspec.structs.replace(grammar, after=end_ids)
        if budget is not None and place != "over":
            begin_ids = self._tokenizer.encode_further(form.begin) if place == "may" else []
            thinking = Thinking(budget, end_ids, tuple(begin_ids))
        return msgspec.structs.replace(sampling, grammar=grammar, thinking=thinking)

    def _place(
        self, request: GenerateRequest, prompt_ids: Sequence[int], form: ReasoningForm
    ) -> Place:
        if request.continues:
            return self._place_within(request, prompt_ids, form)
        if request.messages is None and not request.splits:
            return "over"  # a text to go on with, not an answer
        tail = self._tokenizer.decode(list(prompt_ids[-_TAIL:]), skip_special=False).rstrip()
        if tail.endswith(form.begin):
            return "begun"
        return "over" if tail.endswith(form.end) else "may"

    def _place_within(
        self, request: GenerateRequest, prompt_ids: Sequence[int], form: ReasoningForm
    ) -> Place:
        """Of an answer that goes on."""
        if request.messages is not None:
            said = str(request.messages[-1].get("content") or "")
        else:
            known = request.history.token_ids if request.history else ()
            said = self._tokenizer.decode(list(prompt_ids[len(known) :]), skip_special=False)
        if form.end in said:
            return "over"
        if form.begin in said:
            return "begun"
        if said.strip():
            return "over"
        return "may"

    def _special_ids(self, mark: str) -> Sequence[int]:
        ids = self._tokenizer.encode_further(mark)
        return ids if self._tokenizer.added_ids.issuperset(ids) else ()


def _answer_rule(structure: Structure, *, whole: bool) -> str:
    """What an answer is that calls nothing."""
    if whole or structure.kind not in ("json_object", "json_schema"):
        raise InvalidField(
            f"{structure.param} cannot be combined with tools "
            + ("on this model" if whole else "but for JSON")
            + ", as nothing tells a call from an answer: choose tool_choice none, or leave it out",
            param=structure.param,
        )
    schema = {"type": "object"} if structure.kind == "json_object" else structure.value
    return json_rule(schema, structure.param)
