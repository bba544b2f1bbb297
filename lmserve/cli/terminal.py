"""Lines that a person types, or that a pipe brings."""

from __future__ import annotations

import sys
from contextlib import suppress
from types import ModuleType


class Terminal:
    """Where a person types: prompts, line editing and history. A pipe gets none of them."""

    def __init__(self) -> None:
        self._is_typed = sys.stdin.isatty() and sys.stdout.isatty()
        self._readline: ModuleType | None = None
        if self._is_typed:
            with suppress(ImportError):
                import readline

                self._readline = readline  # its import gives input() editing and history

    def read(self, prompt: str) -> str | None:
        """The next line, or None at the end of input."""
        try:
            return input(prompt if self._is_typed else "")
        except EOFError:
            return None

    def unsent(self) -> str:
        """What was typed of a line that Ctrl-C interrupted."""
        return self._readline.get_line_buffer() if self._readline is not None else ""
