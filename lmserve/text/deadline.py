"""When text work must be over. Threads cannot be stopped: what may take long looks at this."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar, TypeVarTuple

from lmserve.errors import TextTooSlow

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_over_at: ContextVar[float | None] = ContextVar("over_at", default=None)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """What is called inside has this long, in this thread."""
    token = _over_at.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _over_at.reset(token)


def limited(seconds: float, call: Callable[[*Ts], T], *args: *Ts) -> T:
    """What it returns, `within` its time."""
    with within(seconds):
        return call(*args)


def check() -> None:
    """Raises TextTooSlow once the time is over."""
    over_at = _over_at.get()
    if over_at is not None and time.monotonic() > over_at:
        raise TextTooSlow(
            "the chat template takes too long over these messages: send fewer", param="messages"
        )
