"""Lists, a page at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from lmserve.errors import InvalidField


class Named(Protocol):
    id: str


T = TypeVar("T", bound=Named)


def page(records: Sequence[T], after: str | None, limit: int) -> tuple[Sequence[T], bool]:
    """Those after that one, at most so many; and whether there are more. Raises InvalidField."""
    if after is not None:
        place = next((i for i, record in enumerate(records) if record.id == after), None)
        if place is None:
            raise InvalidField(f"after is {after[:70]!r}: there is no such id here", param="after")
        records = records[place + 1 :]
    return records[:limit], len(records) > limit
