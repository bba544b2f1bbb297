"""Ctrl-C that waits for the end of a step, so that it never stops the engine in the middle."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class Interrupts:
    """In a `with` block of the main thread, SIGINT is noted, and raised by `check`, or at the
    block's end. A handler that the program set itself stays."""

    def __init__(self) -> None:
        self._came = False
        self._waits = False

    def __enter__(self) -> Interrupts:
        if (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        ):
            signal.signal(signal.SIGINT, self._note)
            self._waits = True
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._came = True

    def check(self) -> None:
        if self._came:
            self._came = False
            raise KeyboardInterrupt

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._waits:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if kind is None:
            self.check()
