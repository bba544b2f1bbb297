"""Connections that end: what goes with them, and what goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer

from lmserve.bridge.fake import FakeEngine
from lmserve.server.app import build_app
from lmserve.server.keys import BODY_BYTES
from lmserve.server.lifecycle import Server, running_server
from lmserve.settings import SessionSettings, Settings, StreamSettings
from tests.server.sockets import PATH, Socket, connected


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    return replace(
        settings,
        server=replace(settings.server, write_timeout_s=0.3),
        sessions=SessionSettings(data_dir=str(tmp_path)),
        streams=StreamSettings(stream_grace_s=0.1),
    )


@pytest.fixture
async def web(server: Server) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of the production entry, where a lost client cancels its handler."""
    async with aiohttp.ClientSession(server.url) as session:
        yield session


async def become(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def lanes_at_work() -> int:
    return sum("Jobs._run" in repr(task.get_coro()) for task in asyncio.all_tasks())


async def test_a_lost_connections_answer_ends_after_the_grace(
    web: aiohttp.ClientSession, fake: Any
) -> None:
    fake.will_hang("Hel")
    async with connected(web) as socket:
        await socket.send("response.create", input="hi")
        id = (await socket.until("response.output_text.delta"))[0]["response"]["id"]
        assert lanes_at_work() == 1
        socket.ws._response.connection.transport.abort()
    await asyncio.wait_for(fake.aborted.wait(), 20)
    await become(lambda: lanes_at_work() == 0)
    async with connected(web) as socket:
        await socket.send("session.resume", response_id=id)
        events = await socket.until("response.incomplete")
        reason = events[-1]["response"]["incomplete_details"]["reason"]
        assert reason == "abandoned"


async def test_a_connection_that_ends_forgets_what_is_not_stored(
    web: aiohttp.ClientSession, fake: Any
) -> None:
    fake.will_hang("Hel")
    async with connected(web) as socket:
        await socket.send("response.create", input="hi", store=False)
        id = (await socket.until("response.output_text.delta"))[0]["response"]["id"]
    await asyncio.wait_for(fake.aborted.wait(), 20)
    async with asyncio.timeout(20):
        while (await web.get(f"{PATH}/{id}")).status != 404:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_what_was_counted_is_given_back(settings: Settings) -> None:
    fake = FakeEngine(settings.engine)
    fake.will_hang("Hel")
    app = build_app(settings, fake)
    async with TestClient(TestServer(app, handler_cancellation=True)) as client:
        async with connected(client) as socket:
            await socket.send("response.create", input="hi")
            await socket.until("response.output_text.delta")
            assert app[BODY_BYTES].num_bytes == 0  # it runs
            for _ in range(3):
                await socket.send("response.create", input="hi" * 10_000)
            await socket.call("session.list")
            assert app[BODY_BYTES].num_bytes > 60_000
        await become(lambda: lanes_at_work() == 0)
        assert app[BODY_BYTES].num_bytes == 0


async def test_a_deaf_reader_loses_its_own_connection_alone(
    web: aiohttp.ClientSession, fake: Any
) -> None:
    fake.will_say("x" * 1000).will_say("good")
    async with connected(web) as good, web.ws_connect(PATH) as ws:
        await good.send("response.create", input="hi")
        id = (await good.until("response.completed"))[0]["response"]["id"]
        deaf = Socket(ws)
        ws._response.connection.transport.pause_reading()
        with pytest.raises((ConnectionError, aiohttp.ClientError)):
            for number in range(100_000):
                await deaf.send("session.resume", response_id=id, stream_id=f"{number % 32}")
                await asyncio.sleep(0)
        await good.send("response.create", input="hi", previous_response_id=id)
        await good.until("response.completed")
    await become(lambda: lanes_at_work() == 0)


async def test_a_stopped_server_says_goodbye(settings: Settings) -> None:
    fake = FakeEngine(settings.engine)
    fake.will_hang("Hel")
    async with aiohttp.ClientSession() as web:
        async with running_server(settings, fake) as server:
            ws = await web.ws_connect(server.url + PATH)
            idle = await web.ws_connect(server.url + PATH)
            socket = Socket(ws)
            await socket.send("response.create", input="hi")
            await socket.until("response.output_text.delta")
            rest = asyncio.create_task(socket.until("response.incomplete"))
            goodbye = asyncio.create_task(idle.receive())
        events = await rest
        reason = events[-1]["response"]["incomplete_details"]["reason"]
        assert reason == "server_shutdown"
        assert await socket.closed() == aiohttp.WSCloseCode.GOING_AWAY
        assert (await goodbye).data == aiohttp.WSCloseCode.GOING_AWAY
    assert lanes_at_work() == 0
