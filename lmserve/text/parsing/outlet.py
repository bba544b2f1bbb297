"""What a parser has told: parts, with the white space around marks left out."""

from __future__ import annotations

import secrets

from lmserve.types import CallArguments, CallBegun, Content, Part, Reasoning

SPACE = " \t\r\n"
MAX_SPACE = 32  # characters of white space that are held, to be left out before a mark


class Outlet:
    """Text is told as it comes, less the white space at its end until more follows."""

    def __init__(self, kind: type[Content] | type[Reasoning] = Content, *, fresh: bool = False):
        """`fresh`: white space that comes first is left out."""
        self._kind = kind
        self._parts: list[Part] = []
        self._space = ""
        self._fresh = fresh
        self.num_calls = 0

    def text(self, text: str) -> None:
        if self._fresh:
            text = text.lstrip(SPACE)
            if not text:
                return
            self._fresh = False
        text = self._space + text
        num_told = max(len(text.rstrip(SPACE)), len(text) - MAX_SPACE)
        if num_told:
            self._parts.append(self._kind(text[:num_told]))
        self._space = text[num_told:]

    def mark(self) -> None:
        """A mark comes here: no white space is told on either side of it."""
        self._space = ""
        self._fresh = True

    def call(self, name: str) -> None:
        self.mark()
        id = f"call_{secrets.token_hex(12)}"
        self._parts.append(CallBegun(self.num_calls, id, name))
        self.num_calls += 1

    def arguments(self, text: str) -> None:
        """More of the last call's."""
        if text:
            self._parts.append(CallArguments(self.num_calls - 1, text))

    def end(self) -> None:
        """No mark comes any more: white space is text."""
        if self._space:
            self._parts.append(self._kind(self._space))
            self._space = ""

    def take(self) -> list[Part]:
        parts, self._parts = self._parts, []
        return parts
