"""Whose KV goes when pinned conversations take too much of the cache."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Protocol, TypeVar


class Pinned(Protocol):
    """A conversation whose KV is kept."""

    @property
    def owner(self) -> str: ...

    @property
    def num_blocks(self) -> int: ...

    @property
    def used_s(self) -> float: ...


P = TypeVar("P", bound=Pinned)


def to_let_go(pinned: Iterable[P], num_blocks: int) -> list[P]:
    """Conversations that together hold so many blocks. Each is of the owner who then holds most,
    and the one that owner used longest ago: whoever holds no more than an equal part of the room
    loses nothing to others."""
    if num_blocks <= 0:
        return []  # mostly; the rest looks at all of them
    held: Counter[str] = Counter()
    by_owner: dict[str, list[P]] = {}
    for one in sorted(pinned, key=lambda one: one.used_s, reverse=True):
        held[one.owner] += one.num_blocks
        by_owner.setdefault(one.owner, []).append(one)
    chosen: list[P] = []
    while num_blocks > 0 and held:
        owner, _ = held.most_common(1)[0]
        one = by_owner[owner].pop()
        held[owner] -= one.num_blocks
        if not by_owner[owner]:
            del held[owner]
        num_blocks -= one.num_blocks
        chosen.append(one)
    return chosen
