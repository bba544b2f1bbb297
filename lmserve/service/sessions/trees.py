"""Sessions as trees: made, looked at, renamed, rolled back, forked, carried elsewhere.

What changes a line waits for the session's turn, as an answer does; the rest does not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from msgspec import UNSET, UnsetType

from lmserve.ids import Ids
from lmserve.service.node_id import node_id
from lmserve.service.sessions.tree import (
    Node,
    Seed,
    SessionInfo,
    check_many,
    check_title,
    from_export,
    in_a_row,
    to_export,
)
from lmserve.service.sessions.turns import Slot, Turns
from lmserve.service.store import keys as store_keys
from lmserve.service.store import trees as store_tree
from lmserve.service.store.keeper import Keeper
from lmserve.service.store.store import SessionKey, Store
from lmserve.service.warm.warming import Warming
from lmserve.settings import SessionSettings

T = TypeVar("T")


class Trees:
    """The part of `Sessions` that needs no engine."""

    def __init__(self, settings: SessionSettings, clock: Callable[[], float], warmth: Warming):
        self.settings = settings
        self.warmth = warmth
        self._max_tokens = settings.max_session_tokens
        self.turns = Turns(refuse=settings.session_busy == "refuse")
        self.keeper = Keeper(settings, clock, self.turns.busy, lambda: Store(settings.data_dir))
        self.ids = Ids()

    async def open(self) -> None:
        """Opens the store. Raises SetupError, one line with the remedy."""
        await self.keeper.open()
        self.ids.node = await self.keeper.run(lambda store: node_id(store_keys.folder(store)))

    async def close(self) -> None:
        """Waits for what is being written. Idempotent."""
        await self.keeper.close()

    async def create(
        self,
        key: SessionKey,
        *,
        title: str | None = None,
        messages: Sequence[dict[str, Any]] = (),
    ) -> SessionInfo:
        """Raises SessionExists, InvalidField."""
        check_title(title)
        await check_many(messages)
        head = len(messages) - 1 if messages else None
        return await self._plant(key, title, in_a_row(messages), head)

    async def info(self, key: SessionKey) -> SessionInfo:
        """Raises SessionNotFound, as all that follow do."""
        return await self.keeper.read(lambda store: store_tree.info(store, key))

    async def line(self, key: SessionKey, at: int | None = None) -> Sequence[Node]:
        """From the root to the head, or to this message. Raises MessageNotFound."""
        return await self.keeper.read(lambda store: store_tree.line(store, key, at))

    async def node(self, key: SessionKey, id: int) -> Node:
        """One message. Raises MessageNotFound."""
        (node,) = await self.keeper.read(lambda store: store_tree.nodes(store, key, [id]))
        return node

    async def nodes(self, key: SessionKey) -> Sequence[Node]:
        """All messages, parents first, which tell who their siblings are."""
        _, nodes = await self.keeper.read(lambda store: store_tree.tree(store, key))
        return nodes

    async def update(
        self,
        key: SessionKey,
        *,
        title: str | None | UnsetType = UNSET,
        head: int | None | UnsetType = UNSET,
    ) -> SessionInfo:
        """Renames it; moves its head to any message of it (None: before the first), when the
        turns before are over. Raises MessageNotFound, InvalidField."""
        if title is not UNSET:
            check_title(title)

        def work(store: Store, now: float) -> SessionInfo:
            return store_tree.update(store, key, title, head, now)

        if head is not UNSET:
            return await self._in_turn(key, work)
        return await asyncio.shield(self.keeper.add(key, work))

    async def fork(
        self,
        key: SessionKey,
        new_key: SessionKey,
        *,
        at: int | None = None,
        title: str | None = None,
    ) -> SessionInfo:
        """A new session with a copy of the line to this message (or the head) and its tokens, so
        that its first turn runs what is new only. Raises SessionExists, MessageNotFound."""
        check_title(title)
        info = await self._in_turn(
            new_key, lambda store, now: store_tree.fork(store, key, new_key, at, title, now)
        )
        self.warmth.forked(key, new_key)
        return info

    async def export(self, key: SessionKey) -> dict[str, Any]:
        """As JSON."""
        return await self.keeper.read(lambda store: to_export(*store_tree.tree(store, key)))

    async def import_(self, key: SessionKey, exported: Mapping[str, Any]) -> SessionInfo:
        """A new session from what `export` gave. Raises SessionExists, InvalidField."""
        title, seeds, head = await asyncio.to_thread(from_export, exported)
        return await self._plant(key, title, seeds, head)

    async def _plant(
        self, key: SessionKey, title: str | None, seeds: Sequence[Seed], head: int | None
    ) -> SessionInfo:
        return await self._in_turn(
            key,
            lambda store, now: store_tree.plant(
                store, key, title, seeds, head, now, self._max_tokens
            ),
        )

    async def _in_turn(self, key: SessionKey, work: Callable[[Store, float], T]) -> T:
        return await self._write_and_leave(await self.turns.enter(key), work)

    async def _write_and_leave(self, slot: Slot, work: Callable[[Store, float], T]) -> T:
        """A caller that is cancelled meanwhile changes nothing."""
        written = self.keeper.add(slot.key, work)
        written.add_done_callback(lambda _: self.turns.leave(slot))
        return await asyncio.shield(written)

    async def list(
        self, owner: str, *, limit: int, after: str | None = None
    ) -> tuple[Sequence[SessionInfo], bool]:
        """The owner's sessions, those used last first, and whether there are more. `after`: the
        last one of the page before; SessionNotFound where it is gone."""
        return await self.keeper.read(lambda store: store_tree.page(store, owner, limit, after))
