"""A client of the WebSocket that speaks plain JSON."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson

PATH = "/v1/responses"


class Socket:
    """One connection."""

    def __init__(self, ws: Any):
        self.ws = ws

    async def send(self, type: str, **fields: Any) -> None:
        await self.ws.send_str(orjson.dumps({"type": type, **fields}).decode())

    async def raw(self, text: str) -> None:
        await self.ws.send_str(text)

    async def receive(self) -> Any:
        message = await self.ws.receive(timeout=20)
        assert message.type is aiohttp.WSMsgType.TEXT, message
        return orjson.loads(message.data)

    async def call(self, type: str, **fields: Any) -> Any:
        """The result of what is asked, where nothing else is going on."""
        await self.send(type, **fields)
        event = await self.receive()
        assert event["type"] == f"{type}.done", event
        return event["result"]

    async def error(self, type: str, **fields: Any) -> Any:
        await self.send(type, **fields)
        event = await self.receive()
        assert event["type"] == "error", event
        return event

    async def until(self, *types: str) -> list[Any]:
        """The events up to the first of such a type."""
        events = []
        while True:
            events.append(await self.receive())
            assert events[-1]["type"] != "error" or "error" in types, events[-1]
            if events[-1]["type"] in types:
                return events

    async def closed(self) -> int:
        """With which code."""
        message = await self.ws.receive(timeout=20)
        if message.type is aiohttp.WSMsgType.CLOSE:
            return int(message.data)
        assert message.type is aiohttp.WSMsgType.CLOSED, message
        return int(self.ws.close_code)


@asynccontextmanager
async def connected(client: Any, **options: Any) -> AsyncIterator[Socket]:
    async with client.ws_connect(PATH, **options) as ws:
        yield Socket(ws)
