"""What those who run turns tell of them, so that conversations can be kept warm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from lmserve.service.store.rows import SessionKey


class Warming(Protocol):
    """Nothing of it raises, or keeps a turn for long."""

    async def ready(self, key: SessionKey, token_ids: Sequence[int], cache_salt: str = "") -> None:
        """A turn comes that begins with these tokens."""

    def used(
        self,
        key: SessionKey,
        token_ids: Sequence[int],
        *,
        spill: bool = True,
        cache_salt: str = "",
    ) -> None:
        """A turn ran these tokens. `spill` False: they never go to disk."""

    def forked(self, key: SessionKey, new_key: SessionKey) -> None:
        """The other session begins as this one."""

    def gone(self, key: SessionKey) -> None:
        """There is no such session any more."""


class Cold:
    """Nothing is kept warm."""

    async def ready(self, key: SessionKey, token_ids: Sequence[int], cache_salt: str = "") -> None:
        pass

    def used(
        self,
        key: SessionKey,
        token_ids: Sequence[int],
        *,
        spill: bool = True,
        cache_salt: str = "",
    ) -> None:
        pass

    def forked(self, key: SessionKey, new_key: SessionKey) -> None:
        pass

    def gone(self, key: SessionKey) -> None:
        pass
