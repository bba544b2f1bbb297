"""Reasoning before an answer: `<think>…</think>`, told apart from what follows it."""

from __future__ import annotations

from lmserve.text.parsing.calls import num_begun
from lmserve.text.parsing.forms import ReasoningForm
from lmserve.text.parsing.outlet import MAX_SPACE, SPACE, Outlet
from lmserve.text.parsing.parser import AnswerParser
from lmserve.types import Content, Part, Reasoning


class PlainParser:
    """An `AnswerParser` where there is nothing to tell apart."""

    marks: frozenset[str] = frozenset()
    in_reasoning = False
    num_calls = 0

    def push(self, text: str) -> list[Part]:
        return [Content(text)] if text else []

    def end(self) -> list[Part]:
        return []


class ReasoningParser:
    """An `AnswerParser`: reasoning that comes first, then what `answer` makes of the rest. Calls
    in the reasoning are reasoning; marks after it are text."""

    def __init__(self, form: ReasoningForm, answer: AnswerParser, *, begun: bool):
        """`begun`: the prompt ends in the reasoning's first mark."""
        self.marks = answer.marks | {form.begin, form.end}
        self.in_reasoning = begun
        self._form = form
        self._answer = answer
        self._outlet = Outlet(Reasoning, fresh=True)
        self._waits = True  # for the first mark, which the model may say all the same
        self._begun = begun
        self._spaced = False  # white space between the reasoning and the answer is left out
        self._rest = ""

    @property
    def num_calls(self) -> int:
        return self._answer.num_calls

    def push(self, text: str) -> list[Part]:
        if self._waits:
            text = self._wait(self._rest + text)
        elif self.in_reasoning:
            text = self._rest + text
        if self.in_reasoning:
            text = self._reason(text)
        return self._outlet.take() + self._push_answer(text)

    def end(self) -> list[Part]:
        rest, self._rest = self._rest, ""
        if self._begun and (self._waits or self.in_reasoning):
            self._outlet.text(rest)
            rest = ""
        self._outlet.end()
        return self._outlet.take() + self._push_answer(rest) + self._answer.end()

    def _wait(self, text: str) -> str:
        """Looks for the first mark; the text that follows it, or all of it where there is none."""
        begin, self._rest = self._form.begin, ""
        said = text.lstrip(SPACE)
        if len(text) - len(said) <= MAX_SPACE:
            if said.startswith(begin):
                self._waits, self._begun, self.in_reasoning = False, True, True
                return said[len(begin) :]
            if begin.startswith(said):
                self._rest = text
                return ""
        self._waits = False
        return text

    def _reason(self, text: str) -> str:
        """Tells the reasoning; the text that follows its end."""
        if self._waits:
            return ""
        end = self._form.end
        at = text.find(end)
        if at < 0:
            at = len(text) - num_begun(text, 0, end)
            self._outlet.text(text[:at])
            self._rest = text[at:]
            return ""
        self._outlet.text(text[:at])
        self._outlet.mark()
        self._rest = ""
        self.in_reasoning = False
        self._spaced = True
        return text[at + len(end) :]

    def _push_answer(self, text: str) -> list[Part]:
        if self._spaced:
            text = text.lstrip(SPACE)
            self._spaced = not text
        return self._answer.push(text) if text else []
