"""Kernels that torch's dispatcher does not see, made known to whoever records a graph."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ParamSpec, Protocol

import torch

P = ParamSpec("P")


class Recorder(Protocol):
    def launched(
        self, function: Callable[..., None], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Runs it, and notes it."""


_recorder: ContextVar[Recorder | None] = ContextVar("recorder", default=None)


def runs_triton(device: torch.device) -> bool:
    """On a CPU Triton's interpreter alone runs kernels, where the environment asks for it."""
    return device.type != "cpu" or os.environ.get("TRITON_INTERPRET") == "1"


def launch(function: Callable[P, None]) -> Callable[P, None]:
    """For a function that launches kernels. All that it computes it writes into tensors that it is
    given; it allocates nothing and returns nothing. Numbers among its arguments are noted as they
    are, as by CUDA."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> None:
        recorder = _recorder.get()
        if recorder is None:
            function(*args, **kwargs)
        else:
            recorder.launched(function, args, kwargs)

    return call


@contextmanager
def noted_by(recorder: Recorder | None) -> Iterator[None]:
    """Launches in this thread go through `recorder`."""
    token = _recorder.set(recorder)
    try:
        yield
    finally:
        _recorder.reset(token)


def active_recorder() -> Recorder | None:
    return _recorder.get()
