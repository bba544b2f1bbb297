"""Where a JSON value ends, as it comes: one pass, no recursion, whatever the text is.

Lenient: only strings and brackets are looked at, so what is not quite JSON ends where it would if
it were.
"""

from __future__ import annotations

import re

_IN_STRING = re.compile(r'["\\]')
_SCALAR_END = re.compile(r'[\s,:;"{}\[\]<]')


class ValueScanner:
    """Finds the end of the value that begins at the first character pushed."""

    __slots__ = ("_depth", "_escaped", "_in_string", "_outside", "_scalar", "_stop", "done")

    def __init__(self, first: str, stop: str | None = None):
        """`first`: the character it begins with, which is pushed too. `stop`: a character that is
        never outside of strings in JSON; there it is over as well."""
        self._stop = stop
        self._outside = re.compile(r'["{}\[\]' + (re.escape(stop) if stop else "") + "]")
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._scalar = first not in '"{['
        self.done = False

    def scan(self, text: str, start: int, end: int) -> int:
        """The index just after the value, or `end` while it is not `done`."""
        if self._scalar:
            match = _SCALAR_END.search(text, start, end)
            self.done = match is not None
            return match.start() if match else end
        pos = start
        while pos < end:
            pos = self._in(text, pos, end) if self._in_string else self._out(text, pos, end)
            if self.done:
                return pos
        return end

    def _in(self, text: str, pos: int, end: int) -> int:
        if self._escaped:
            self._escaped = False
            return pos + 1
        match = _IN_STRING.search(text, pos, end)
        if match is None:
            return end
        if match[0] == "\\":
            self._escaped = True
        else:
            self._in_string = False
            self.done = self._depth == 0
        return match.end()

    def _out(self, text: str, pos: int, end: int) -> int:
        match = self._outside.search(text, pos, end)
        if match is None:
            return end
        char = match[0]
        if char == '"':
            self._in_string = True
        elif char == self._stop:
            self.done = True
            return match.start()
        else:
            self._depth += 1 if char in "{[" else -1
            self.done = self._depth == 0
        return match.end()
