"""What a client makes of a server that says the unexpected, or says it late."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from lmserve_client import Lmserve
from lmserve_client.errors import APIResponseError
from websockets.asyncio.server import Request, Response, ServerConnection, serve

from tests.clients.conftest import Scripted
from tests.clients.test_lane import stream

Told = Callable[[ServerConnection], Awaitable[None]]


@asynccontextmanager
async def telling(*told: Told, num_refusals: int = 0) -> AsyncIterator[str]:
    """A server that says each of these on one connection, after some that it refuses."""
    left = iter(told)
    refusals = iter(range(num_refusals))

    def refuse(connection: ServerConnection, request: Request) -> Response | None:
        if next(refusals, None) is None:
            return None
        return connection.respond(503, "not ready\n")

    async def tell(connection: ServerConnection) -> None:
        await next(left)(connection)

    async with serve(tell, "127.0.0.1", 0, process_request=refuse) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def heard(connection: ServerConnection) -> Any:
    return json.loads(await connection.recv())


async def say(connection: ServerConnection, *items: Any, lane: str) -> None:
    for item in items:
        await connection.send(json.dumps({"stream_id": lane, **item}))


async def whole(connection: ServerConnection) -> None:
    asked = await heard(connection)
    await say(connection, *stream("resp_1", ["Hi"]), lane=asked["stream_id"])
    await connection.wait_closed()


async def test_a_server_that_is_not_ready_yet() -> None:
    async with telling(whole, num_refusals=5) as url, Lmserve(url) as client:
        assert await (await client.respond("Hello")).text() == "Hi"


async def test_what_is_no_event_is_told() -> None:
    async def garbage(connection: ServerConnection) -> None:
        await connection.recv()
        await connection.send("<h1>Hello</h1>")
        await connection.wait_closed()

    async with telling(garbage) as url, Lmserve(url) as client:
        with pytest.raises(APIResponseError):
            await client.respond("Hello")


async def test_what_is_no_event_is_told_over_http(scripted: Scripted) -> None:
    scripted.will_answer(b"data: {\n\n", "200 OK", "Content-Type: text/event-stream")
    async with Lmserve(scripted.url, websocket=False) as client:
        with pytest.raises(APIResponseError):
            await client.respond("Hello")


async def test_half_a_letter_is_refused_by_the_server() -> None:
    """As a terminal gives it, where its bytes are no UTF-8."""
    asked: list[Any] = []

    async def look(connection: ServerConnection) -> None:
        asked.append(await heard(connection))
        await say(connection, *stream("resp_1", ["Hi"]), lane=asked[0]["stream_id"])
        await connection.wait_closed()

    async with telling(look) as url, Lmserve(url) as client:
        assert await (await client.respond("Hello \udcff")).text() == "Hi"
    assert asked[0]["input"] == "Hello \udcff"


async def test_what_is_said_while_it_catches_up_is_said_once() -> None:
    events = stream("resp_1", ["a", "b", "c"])
    lost, caught_up = asyncio.Event(), asyncio.Event()
    steers: list[str] = []

    async def first(connection: ServerConnection) -> None:
        asked = await heard(connection)
        await say(connection, *events[:2], lane=asked["stream_id"])
        assert (await heard(connection))["input"] == "one"  # and it is lost
        connection.transport.abort()

    async def second(connection: ServerConnection) -> None:
        resumed = await heard(connection)
        lane = resumed["stream_id"]
        done = {"type": "session.resume.done", "event_id": resumed["event_id"]}
        await say(connection, {**done, "result": {"last": 3}}, events[2], lane=lane)
        lost.set()
        await caught_up.wait()
        await say(connection, events[3], lane=lane)
        while (item := await heard(connection))["type"] == "response.steer":
            steers.append(item["input"])
        await say(connection, *events[4:], lane=lane)
        await connection.wait_closed()

    async with telling(first, second) as url, Lmserve(url) as client:
        answer = await client.respond("Hello")
        said = [asyncio.create_task(answer.steer("one"))]
        pieces = aiter(answer)
        assert await anext(pieces) == "a"
        assert await anext(pieces) == "b"  # it was resumed
        said.append(asyncio.create_task(answer.steer("two")))
        await asyncio.sleep(0)
        caught_up.set()
        assert await anext(pieces) == "c"
        listed = asyncio.create_task(client.sessions.list())
        assert [piece async for piece in pieces] == []
        listed.cancel()
        await asyncio.gather(*said, listed, return_exceptions=True)
    assert sorted(steers) == ["one", "two"]
