"""One call written as a JSON object: `{"name": …, "arguments": {…}}`.

The name is told when the arguments begin, and these as they come, exactly as they are written.
Until then all is held: what turns out to be no call was text.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Literal

from lmserve.text.parsing.json_scan import ValueScanner
from lmserve.text.parsing.outlet import SPACE, Outlet

MAX_HELD = 64 * 1024  # characters of a call before its name and its arguments' beginning
MAX_NAME_CHARS = 256
ARGUMENTS = ("arguments", "parameters")

_State = Literal["open", "first", "key", "colon", "value", "comma", "done", "failed"]


class CallReader:
    """Reads from the object's `{` on, until `done` (just after it) or `failed` (no call)."""

    def __init__(
        self,
        outlet: Outlet,
        *,
        known: Callable[[str], bool],
        needs_arguments: bool,
        stop: str | None,
    ):
        """`known`: whether there is a function of this name. `stop`: a character outside of
        strings that ends even a broken call."""
        self._outlet = outlet
        self._known = known
        self._needs_arguments = needs_arguments
        self._stop = stop
        self._state: _State = "open"
        self._scanner: ValueScanner | None = None
        self._value: list[str] = []  # of the key or value being scanned
        self._key = ""
        self._name: str | None = None
        self._arguments: str | None = None  # those that came before the name
        self._streams = False  # the value being scanned are the arguments, told as they come
        self._held: list[str] = []
        self._num_held = 0
        self.told = False

    @property
    def over(self) -> bool:
        return self._state in ("done", "failed")

    @property
    def failed(self) -> bool:
        """It was no call: `held` is its text so far."""
        return self._state == "failed"

    @property
    def held(self) -> str:
        return "".join(self._held)

    def read(self, text: str, pos: int) -> int:
        """Reads on from `pos`, up to the index returned."""
        while pos < len(text) and not self.over:
            # what is held has one bound, wherever the text is cut
            end = len(text) if self.told else min(len(text), pos + MAX_HELD - self._num_held)
            if end == pos:
                self._state = "failed"
                break
            was_told = self.told
            after = self._step(text, pos, end)
            if not was_told:
                self._held.append(text[pos:after])
                self._num_held += after - pos
            pos = after
        return pos

    def _step(self, text: str, pos: int, end: int) -> int:
        if self._scanner is not None:
            return self._scan(self._scanner, text, pos, end)
        char = text[pos]
        if char in SPACE:
            return pos + 1
        match self._state:
            case "open":
                if char != "{":
                    return self._fault(pos)
                self._state = "first"
                return pos + 1
            case "first" | "key":
                if char == '"':
                    self._begin(char)
                    return pos
                if char == "}" and self._state == "first":
                    return self._close(pos)
                return self._fault(pos)
            case "colon":
                if char != ":":
                    return self._fault(pos)
                self._state = "value"
                return pos + 1
            case "value":
                return self._begin_value(char, pos)
            case _:
                if char == "}":
                    return self._close(pos)
                if char != ",":
                    return self._fault(pos)
                self._state = "key"
                return pos + 1

    def _fault(self, pos: int) -> int:
        """Not JSON. A call that was told is over here."""
        self._state = "done" if self.told else "failed"
        return pos

    def _begin(self, first: str) -> None:
        self._scanner = ValueScanner(first, self._stop)
        self._value = []

    def _begin_value(self, char: str, pos: int) -> int:
        if char in ",:;}]<":
            return self._fault(pos)
        if self._key in ARGUMENTS and not self.told:
            if char not in '{"n':
                return self._fault(pos)
            if char == "{" and self._name is not None:
                self._tell()
                self._streams = True
        self._begin(char)
        return pos

    def _scan(self, scanner: ValueScanner, text: str, pos: int, end: int) -> int:
        after = scanner.scan(text, pos, end)
        if self._streams:
            self._outlet.arguments(text[pos:after])
        elif not self.told:
            self._value.append(text[pos:after])
        if scanner.done:
            self._scanner = None
            self._streams = False
            self._scanned("".join(self._value))
        return after

    def _scanned(self, value: str) -> None:
        if self._state != "value":
            self._key = _string(value) or ""
            self._state = "colon"
            return
        self._state = "comma"
        if self.told:
            return
        if self._key == "name":
            self._name = _string(value)
            if not self._name or len(self._name) > MAX_NAME_CHARS or not self._known(self._name):
                self._state = "failed"
                return
        elif self._key in ARGUMENTS:
            arguments = _arguments(value)
            if arguments is None:
                self._state = "failed"
                return
            self._arguments = arguments
        if self._name is not None and self._arguments is not None:
            self._tell()
            self._outlet.arguments(self._arguments)

    def _tell(self) -> None:
        assert self._name is not None
        self._outlet.call(self._name)
        self.told = True
        self._held = []

    def _close(self, pos: int) -> int:
        if not self.told:
            if self._name is None or self._needs_arguments:
                self._state = "failed"
                return pos
            self._tell()
            self._outlet.arguments("{}")
        self._state = "done"
        return pos + 1


def _string(value: str) -> str | None:
    """What a JSON string says. None: it is none."""
    try:
        said = json.loads(value) if value.startswith('"') else None
        if isinstance(said, str):
            said.encode()  # not with half of a surrogate pair
            return said
    except ValueError:
        pass
    return None


def _arguments(value: str) -> str | None:
    """Arguments that came before the name; or as a string, which holds them; or none."""
    if value.startswith("{"):
        return value
    return "{}" if value == "null" else _string(value)
