"""Calls in an answer, told apart from its text.

    START ──────► TEXT ──mark──► OPEN ──► READ ──► NEXT ──► CLOSE ──► TEXT
      └─the whole answer is calls─▲ ▲───────────────┘

Each mode takes what it can of the text from a position on, and leaves what may be the beginning of
a mark; one that takes nothing and stays waits for more.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from lmserve.text.parsing.call_reader import CallReader
from lmserve.text.parsing.forms import CallForm
from lmserve.text.parsing.named_reader import NamedReader
from lmserve.text.parsing.outlet import MAX_SPACE, SPACE, Outlet
from lmserve.types import Part

FENCE_END = "```"

_FENCE = re.compile(r"```[a-z]{0,12}\n")
_FENCE_BEGUN = re.compile(r"`{1,3}|```[a-z]{1,12}")


class CallParser:
    """An `AnswerParser` for one form of calls."""

    in_reasoning = False

    def __init__(self, form: CallForm, names: Collection[str] = (), *, fenced: bool = True):
        """`names`: the functions there are. `fenced`: calls that are the whole answer may stand
        in a Markdown block."""
        self.marks = form.marks
        self._form = form
        self._names = names
        self._fenced = fenced
        self._outlet = Outlet()
        self._mode: Callable[[str, int], int] = self._start if form.whole else self._text
        self._rest = ""  # not taken yet: the beginning of a mark, perhaps
        self._held = ""  # taken since the mark: text, if no call comes of it
        self._reader: CallReader | NamedReader | None = None
        self._end: str | None = None  # the mark after these calls
        self._marked = False  # they followed a mark
        self._listed = False  # they are items of a list

    @property
    def num_calls(self) -> int:
        return self._outlet.num_calls

    def push(self, text: str) -> list[Part]:
        text = self._rest + text
        pos = 0
        while pos < len(text):
            before = pos, self._mode
            pos = self._mode(text, pos)
            if (pos, self._mode) == before:
                break
        self._rest = text[pos:]
        return self._outlet.take()

    def end(self) -> list[Part]:
        if self._reader is not None:
            self._held += self._reader.held
        if self._mode != self._close:  # else the rest is a closing mark that was cut
            self._outlet.text(self._held + self._rest)
        self._outlet.end()
        return self._outlet.take()

    # Modes. Each returns the position after what it took.

    def _start(self, text: str, pos: int) -> int:
        """Whether the whole answer may be calls."""
        first = _skip_space(text, pos)
        if first - pos > MAX_SPACE:
            return self._turn(self._text, pos)
        if first == len(text):
            return pos
        if text[first] in "{[":
            return self._hold(text, pos, first)
        if self._fenced and text[first] == "`":
            if match := _FENCE.match(text, first):
                self._end = FENCE_END
                return self._hold(text, pos, match.end())
            if _FENCE_BEGUN.fullmatch(text, first):
                return pos
        return self._turn(self._text, pos)

    def _text(self, text: str, pos: int) -> int:
        begin = self._form.begin
        if begin is None:
            self._outlet.text(text[pos:])
            return len(text)
        at = text.find(begin, pos)
        if at < 0:
            at = len(text) - num_begun(text, pos, begin)
            self._outlet.text(text[pos:at])
            return at
        self._outlet.text(text[pos:at])
        self._marked, self._listed, self._end = True, False, self._form.end
        return self._hold(text, at, at + len(begin))

    def _open(self, text: str, pos: int) -> int:
        """Before a call."""
        first = _skip_space(text, pos)
        if first - pos > MAX_SPACE:
            return self._give_back(pos)
        if first == len(text):
            return pos
        char = text[first]
        if char == "[" and not self._listed:
            self._listed = True
            return self._hold(text, pos, first + 1)
        if char == "{":
            self._reader = self._object_reader()
        elif self._form.named and self._marked and not self._listed and char not in "`<":
            self._reader = NamedReader(self._outlet)
        else:
            return self._give_back(pos)
        self._held += text[pos:first]
        return self._turn(self._read, first)

    def _object_reader(self) -> CallReader:
        known = (lambda _: True) if self._marked else self._names.__contains__
        stop = self._end[0] if self._marked and self._end else None
        return CallReader(self._outlet, known=known, needs_arguments=not self._marked, stop=stop)

    def _read(self, text: str, pos: int) -> int:
        reader = self._reader
        assert reader is not None
        pos = reader.read(text, pos)
        if reader.told:
            self._held = ""
        if not reader.over:
            return pos
        self._reader = None
        if reader.failed:
            self._held += reader.held
            return self._give_back(pos)
        return self._turn(self._next, pos)

    def _next(self, text: str, pos: int) -> int:
        """After a call."""
        pos = _skip_space(text, pos)
        if pos == len(text):
            return pos
        char = text[pos]
        if char == ("," if self._listed else ";"):
            return self._hold(text, pos, pos + 1)
        if self._listed and char == "]":
            pos += 1
        elif not self._listed and char == "{":
            return self._turn(self._open, pos)
        return self._turn(self._close, pos)

    def _close(self, text: str, pos: int) -> int:
        """After the calls, before their closing mark."""
        pos = _skip_space(text, pos)
        if pos == len(text):
            return pos
        end = self._end
        if end is not None:
            if text.startswith(end, pos):
                pos += len(end)
            elif len(text) - pos < len(end) and end.startswith(text[pos:]):
                return pos
        return self._turn(self._text, pos)

    def _turn(self, mode: Callable[[str, int], int], pos: int) -> int:
        self._mode = mode
        return pos

    def _hold(self, text: str, pos: int, after: int) -> int:
        """Takes what comes before a call."""
        self._held += text[pos:after]
        return self._turn(self._open, after)

    def _give_back(self, pos: int) -> int:
        """There was no call: all that was held is text."""
        held, self._held = self._held, ""
        self._outlet.text(held)
        return self._turn(self._text, pos)


def num_begun(text: str, pos: int, mark: str) -> int:
    """How many characters at the end of the text, from `pos` on, may begin the mark."""
    for num in range(min(len(mark) - 1, len(text) - pos), 0, -1):
        if text.endswith(mark[:num]):
            return num
    return 0


_NOT_SPACE = re.compile(f"[^{SPACE}]")


def _skip_space(text: str, pos: int) -> int:
    match = _NOT_SPACE.search(text, pos)
    return match.start() if match else len(text)
