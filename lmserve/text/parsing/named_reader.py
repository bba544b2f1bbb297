"""One call written as a name before its arguments: `name[ARGS]{…}`."""

from __future__ import annotations

import re

from lmserve.text.parsing.forms import ARGS, CALL_ID
from lmserve.text.parsing.json_scan import ValueScanner
from lmserve.text.parsing.outlet import Outlet

MAX_HEAD = 512  # characters before the arguments

_HEAD = re.compile(
    rf"\s*([A-Za-z0-9_.:/-]+)(?:{re.escape(CALL_ID)}[A-Za-z0-9_-]*)?(?:{re.escape(ARGS)})?\s*"
)


class NamedReader:
    """Reads from the name on, to the arguments' end."""

    def __init__(self, outlet: Outlet):
        self._outlet = outlet
        self._scanner: ValueScanner | None = None
        self.held = ""
        self.told = False
        self.over = False
        self.failed = False

    def read(self, text: str, pos: int) -> int:
        """Reads on from `pos`, up to the index returned."""
        if self._scanner is None:
            pos = self._read_head(text, pos)
        if self._scanner is not None:
            start, pos = pos, self._scanner.scan(text, pos, len(text))
            self._outlet.arguments(text[start:pos])
            self.over = self._scanner.done
        return pos

    def _read_head(self, text: str, pos: int) -> int:
        end = min(len(text), pos + MAX_HEAD - len(self.held))
        brace = text.find("{", pos, end)
        after = end if brace < 0 else brace
        self.held += text[pos:after]
        if brace >= 0 and (match := _HEAD.fullmatch(self.held)):
            self._outlet.call(match[1])
            self.told = True
            self._scanner = ValueScanner("{")
        elif brace >= 0 or len(self.held) == MAX_HEAD:
            self.over = self.failed = True
        return after
