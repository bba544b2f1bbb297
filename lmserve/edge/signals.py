"""SIGINT, SIGTERM and SIGHUP, heard by the loop."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _EarlyHangup:
    """A handler: notes that SIGHUP came while nobody could read files again."""

    def __init__(self) -> None:
        self._in_terminal = os.isatty(0)
        self.came = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        _end_without(self._in_terminal)


@contextmanager
def hangups_kept() -> Iterator[None]:
    """For a command that begins: what would end the process is left for `on_hangup`."""
    before = signal.signal(signal.SIGHUP, _EarlyHangup())
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


@contextmanager
def stop_signals() -> Iterator[asyncio.Event]:
    """An event that the first of them sets; the second ends the process at once. Afterwards they
    do what they did before: uvloop alone would leave Ctrl-C without effect."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if stopped.is_set():
            os._exit(130)  # an engine child sees EOF and exits too
        stopped.set()

    before = {number: signal.getsignal(number) for number in (*STOP_SIGNALS, signal.SIGHUP)}
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop)
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)


def on_hangup(reload: Callable[[], None]) -> None:
    """Inside of `stop_signals`: from here on, SIGHUP has files read again. That of a terminal that
    was closed ends the process, as ever."""
    in_terminal, early = os.isatty(0), signal.getsignal(signal.SIGHUP)

    def heard() -> None:
        if not _end_without(in_terminal):
            reload()

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, heard)
    if isinstance(early, _EarlyHangup) and early.came:
        reload()


def _end_without(terminal: bool) -> bool:
    """Ends the process where its terminal, if it had one, was closed."""
    closed = terminal and not os.isatty(0)
    if closed:
        os.kill(os.getpid(), signal.SIGTERM)
    return closed
