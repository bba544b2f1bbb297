"""Answers read to their end."""

from __future__ import annotations

from collections.abc import Callable

from lmserve.service.generation import Generation
from lmserve.types import Done, TextDelta


async def collect(generation: Generation) -> tuple[str, Done]:
    """The whole text and how it ended. Raises EngineError or DeadlineExceeded."""
    texts: list[str] = []
    done = await read(generation, lambda delta: texts.append(delta.text))
    return "".join(texts), done


async def read(generation: Generation, keep: Callable[[TextDelta], None]) -> Done:
    """Hands each delta to `keep`. Raises EngineError or DeadlineExceeded."""

    def show(delta: TextDelta) -> bool:
        keep(delta)
        return True

    with generation.lease():
        await generation.follow(show)
        async for event in generation.events():
            if isinstance(event, Done):
                return event
            keep(event)
    raise AssertionError("a generation ended without its terminal event")
