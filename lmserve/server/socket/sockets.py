"""All connections of the server: counted, and closed with it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from typing import Any

from aiohttp import WSCloseCode, web

from lmserve.edge.socket.authentication import dismiss
from lmserve.errors import LmserveError
from lmserve.service.answers.answers import Answers
from lmserve.service.metrics import Metrics

SETTLE_S = 2.0  # the last events of answers that end with the server are shown until then
CLOSE_S = 5.0  # a client gets this long to say goodbye, too

Settle = Callable[[float], Awaitable[None]]


class Sockets:
    """`close` ends them all, after the last answers."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._open: dict[web.WebSocketResponse[bool], Settle | None] = {}
        self._owners: dict[web.WebSocketResponse[bool], str] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._open)

    @contextlib.contextmanager
    def holding(self, socket: web.WebSocketResponse[bool]) -> Iterator[None]:
        self._open[socket] = None
        self._metrics.num_sockets += 1
        try:
            yield
        finally:
            del self._open[socket]
            self._owners.pop(socket, None)
            self._metrics.num_sockets -= 1

    def serves(self, socket: web.WebSocketResponse[bool], owner: str, settle: Settle) -> None:
        """`settle` is waited for before goodbye."""
        self._open[socket], self._owners[socket] = settle, owner

    def dismiss(self, knows: Callable[[str], bool]) -> None:
        """Ends the connections of owners that are no longer known."""
        for socket, owner in list(self._owners.items()):
            if not knows(owner):
                del self._owners[socket]
                self._do(dismiss(socket))

    def forget(self, answers: Answers, owner: str, ids: Iterable[str]) -> None:
        """Deletes these answers, in a task of this object's."""
        if ids := list(ids):
            self._do(_forget(answers, owner, ids))

    def _do(self, what: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(what)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Clients of a server that restarts come again."""
        closing = [_close(socket, settle) for socket, settle in self._open.items()]
        await asyncio.gather(*closing, return_exceptions=True)
        if self._tasks:
            await asyncio.wait(self._tasks)


SOCKETS = web.AppKey("sockets", Sockets)


async def _close(socket: web.WebSocketResponse[bool], settle: Settle | None) -> None:
    if settle is not None:
        await settle(SETTLE_S)
    await socket.close(code=WSCloseCode.GOING_AWAY, message=b"the server stops")


async def _forget(answers: Answers, owner: str, ids: list[str]) -> None:
    for id in ids:
        with contextlib.suppress(LmserveError):
            await answers.delete(owner, id)
