"""Rare requests to the engine's loop, each waiting for its one reply."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

from lmserve.bridge.channel import ServerChannel
from lmserve.errors import EngineError, EngineUnavailable
from lmserve.messages import Control, ControlReply


class Controls:
    def __init__(self, ids: Iterator[int]):
        self._ids = ids
        self._replies: dict[int, asyncio.Future[ControlReply]] = {}

    async def ask(
        self, channel: ServerChannel, verb: str, timeout_s: float, args: dict[str, Any]
    ) -> Any:
        """What the engine answers. Raises EngineUnavailable when it did not in time or ended,
        EngineError when it failed."""
        id = next(self._ids)
        reply: asyncio.Future[ControlReply] = asyncio.get_running_loop().create_future()
        self._replies[id] = reply
        channel.send(Control(id, verb, args))
        try:
            answer = await asyncio.wait_for(reply, timeout_s)
        except TimeoutError:
            raise EngineUnavailable(
                f"the engine did not answer {verb!r} within {timeout_s:g} s"
            ) from None
        finally:
            self._replies.pop(id, None)
        if answer.error is not None:
            raise EngineError(answer.error)
        return answer.value

    def on_reply(self, message: ControlReply) -> None:
        reply = self._replies.get(message.id)
        if reply is not None and not reply.done():
            reply.set_result(message)

    def end_all(self) -> None:
        """The engine answers no more."""
        replies, self._replies = self._replies, {}
        for reply in replies.values():
            if not reply.done():
                reply.set_exception(EngineUnavailable("the engine stopped before it answered"))
