"""All clients' connections: closed with the distributor."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from aiohttp import WSCloseCode, web

from lmserve.edge.socket.authentication import dismiss

Settle = Callable[[float], Awaitable[None]]


class Sockets:
    def __init__(self) -> None:
        self._open: dict[web.WebSocketResponse[bool], Settle] = {}
        self._owners: dict[web.WebSocketResponse[bool], str] = {}
        self._ending: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._open)

    @contextmanager
    def holding(self, socket: web.WebSocketResponse[bool], settle: Settle) -> Iterator[None]:
        """`settle` is waited for before goodbye."""
        self._open[socket] = settle
        try:
            yield
        finally:
            del self._open[socket]
            self._owners.pop(socket, None)

    def belongs(self, socket: web.WebSocketResponse[bool], owner: str) -> None:
        self._owners[socket] = owner

    def dismiss(self, knows: Callable[[str], bool]) -> None:
        """Ends the connections of owners that are no longer known."""
        for socket, owner in list(self._owners.items()):
            if not knows(owner):
                del self._owners[socket]
                self.keep(asyncio.create_task(dismiss(socket)))

    def keep(self, ending: asyncio.Task[None]) -> None:
        """What is left to do for a connection that has ended."""
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def ended(self) -> None:
        if self._ending:
            await asyncio.wait(self._ending)

    async def close(self, timeout_s: float) -> None:
        """Clients come again, to the next distributor; answers go on until then."""

        async def close(socket: web.WebSocketResponse[bool], settle: Settle) -> None:
            await settle(timeout_s)
            await socket.close(code=WSCloseCode.GOING_AWAY, message=b"the distributor stops")

        await asyncio.gather(
            *(close(socket, settle) for socket, settle in self._open.items()),
            return_exceptions=True,
        )
