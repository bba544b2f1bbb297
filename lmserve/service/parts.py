"""Parts of an answer put together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, groupby

from lmserve.types import CallArguments, CallBegun, Content, Part, Reasoning


def joined(parts: Sequence[Part]) -> list[Part]:
    """Pieces that go on from one another made one."""
    if len(parts) < 2:
        return [*parts]
    whole: list[Part] = []
    for _, group in groupby(parts, _run):
        pieces = [*group]
        first = pieces[0]
        if isinstance(first, CallBegun):
            whole += pieces
            continue
        text = "".join([piece.text for piece in pieces if not isinstance(piece, CallBegun)])
        match first:
            case CallArguments():
                whole.append(CallArguments(first.index, text))
            case Reasoning():
                whole.append(Reasoning(text))
            case Content():
                rated = [piece.logprobs for piece in pieces if isinstance(piece, Content)]
                whole.append(Content(text, tuple(chain.from_iterable(rated))))
    return whole


def _run(part: Part) -> tuple[type[Part], int]:
    """Neighbours of one run go on from one another."""
    return type(part), part.index if isinstance(part, CallBegun | CallArguments) else 0
