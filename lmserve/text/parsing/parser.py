"""What tells an answer's reasoning and calls apart from its text."""

from __future__ import annotations

from typing import Protocol

from lmserve.types import Part


class AnswerParser(Protocol):
    """Of one answer. What it tells is a function of the whole text alone: pieces that go on from
    one another are told as they come, however the text was cut. Never raises on any text."""

    @property
    def marks(self) -> frozenset[str]:
        """Special tokens that it must see, though the client is not to."""

    @property
    def in_reasoning(self) -> bool:
        """Whether what comes next is reasoning, as far as is known."""

    @property
    def num_calls(self) -> int:
        """Calls begun so far."""

    def push(self, text: str) -> list[Part]:
        """What this piece of text adds. Text that may be the beginning of a mark is held."""

    def end(self) -> list[Part]:
        """The text is over: what was held. Calls that are not whole stay as they are."""
