"""What one answer ran, written down as it goes: for those who keep conversations."""

from __future__ import annotations

from collections.abc import Sequence

from lmserve.service.prompt import ModelText
from lmserve.text.parsing.parser import AnswerParser
from lmserve.types import Part


class Transcript:
    """Given to `Service.generate`, which fills it."""

    def __init__(self, text: str = "", token_ids: Sequence[int] = ()) -> None:
        """`text`: what was said before, by these tokens at the prompt's end; it goes on."""
        self.prompt_ids: list[int] = []  # less those
        self.said_parts: Sequence[Part] | None = None  # of what was said before, told apart
        self._model_text: ModelText | None = None
        self._parts = [text]
        self._answer_ids = [*token_ids]
        self._cut = False

    def begin(
        self, model_text: ModelText, prompt_ids: list[int], parser: AnswerParser | None = None
    ) -> None:
        """The parser goes on from what was said before."""
        self._model_text = model_text
        self.prompt_ids = prompt_ids[: len(prompt_ids) - len(self._answer_ids)]
        if parser is not None and self._answer_ids:
            self.said_parts = parser.push(self.answer())

    def add(self, text: str, token_ids: Sequence[int]) -> None:
        """Once a step: cheap. `token_ids` without the hidden end token."""
        self._parts.append(text)
        self._answer_ids += token_ids

    def cut(self) -> None:
        """A stop string ended the text, maybe in the middle of a token."""
        self._cut = True

    @property
    def text_key(self) -> str:
        assert self._model_text is not None
        return self._model_text.text_key

    def answer(self) -> str:
        """The text that was shown."""
        return "".join(self._parts)

    def answer_ids(self) -> list[int]:
        """The tokens of that text: those the model made, or where the text was cut, its own.
        May take a moment: not for the loop."""
        if not self._cut:
            return self._answer_ids
        assert self._model_text is not None
        return self._model_text.tokenizer.encode_further(self.answer())
