"""What the client calls a field, and checks that many fields share."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from lmserve.errors import InvalidField
from lmserve.types import GenerateRequest


def name_of(request: GenerateRequest, field: str) -> str:
    """What the client calls it."""
    return request.params.get(field, field)


def prompt_param(request: GenerateRequest) -> str:
    """What the client calls its prompt."""
    return name_of(request, "prompt" if request.messages is None else "messages")


def check_count(items: Collection[object], most: int, param: str, unit: str) -> None:
    if len(items) > most:
        raise InvalidField(f"{param} has {len(items)} {unit}: give at most {most}", param=param)


def check_ids(ids: Sequence[int], param: str, vocab_size: int) -> None:
    """Tokens that exist."""
    if not ids or (min(ids) >= 0 and max(ids) < vocab_size):
        return
    index, id = next((i, id) for i, id in enumerate(ids) if not 0 <= id < vocab_size)
    raise InvalidField(
        f"{param}[{index}] is {id}: token ids go from 0 to {vocab_size - 1}",
        param=f"{param}[{index}]",
    )


def check_range(value: int, least: int, most: int, param: str, remedy: str = "") -> None:
    if not least <= value <= most:
        raise InvalidField(
            f"{param} is {value}: it must be from {least} to {most}{remedy}", param=param
        )
