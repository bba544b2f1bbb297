"""Asks at any door, whatever carries it."""

from __future__ import annotations

import json
from io import BytesIO
from typing import Any

import aiohttp

from tests.hardening.doors import Door
from tests.server.sockets import connected

ENDS = ("error", "response.completed", "response.incomplete", "response.failed")


async def ask(client: aiohttp.ClientSession, door: Door, body: str) -> tuple[int, bytes]:
    """The status and what is said. A socket has none: 400 where the first event is an error."""
    if door.socket:
        async with connected(client) as socket:
            await socket.raw(body)
            event = (await socket.ws.receive(timeout=20)).data.encode()
            return (400 if b'"type":"error"' in event else 200), event
    async with client.post(door.path, data=BytesIO(body.encode())) as response:
        return response.status, await response.read()


async def ask_to_end(
    client: aiohttp.ClientSession, door: Door, fields: dict[str, Any]
) -> tuple[int, bytes]:
    """With more fields, or others; a socket is read to the answer's end."""
    body = json.dumps(door.body | fields)
    if not door.socket:
        return await ask(client, door, body)
    async with connected(client) as socket:
        await socket.raw(body)
        while True:
            event = (await socket.ws.receive(timeout=20)).data
            type = json.loads(event)["type"]
            if type in ENDS:
                return (400 if type == "error" else 200), event.encode()
