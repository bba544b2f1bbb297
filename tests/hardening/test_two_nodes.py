"""Guards that parallel requests race for, on one server and through a distributor with two."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import pytest

from lmserve.bridge.fake import FakeEngine
from lmserve.distributor.app import running_proxy
from tests.distributor.nodes import QUICK, listen
from tests.hardening.conftest import told
from tests.hardening.doors import DOORS, USER
from tests.hardening.real import (
    RealServer,
    as_before,
    beside,
    hear,
    real_server,
    settings_for,
)
from tests.hardening.test_json import broken
from tests.server.sockets import connected

HTTP = [door for door in DOORS if not door.socket]
RESPONSES = "/v1/responses"
FIRST_BYTES = 256 * 2**20  # of threads that the first large bodies start


@dataclass
class Place:
    """Where requests are sent, and the servers behind it."""

    http: aiohttp.ClientSession
    servers: list[RealServer]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RealServer]]:
    with ExitStack() as stack:
        found = []
        for _ in range(2):
            folder = tmp_path_factory.mktemp("node")
            settings = settings_for(folder, folder)
            found.append(stack.enter_context(real_server(settings, FakeEngine)))
        yield found


@pytest.fixture(params=["one", "two"])
async def place(request: pytest.FixtureRequest, servers: list[RealServer]) -> AsyncIterator[Place]:
    alone = await hear(servers[0].url)
    behind = servers[:1] if request.param == "one" else servers
    if request.param == "one":
        async with as_before(servers[0], FIRST_BYTES), beside(servers[0].url, alone):
            async with aiohttp.ClientSession(servers[0].url) as http:
                yield Place(http, behind)
        return
    listener = listen()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    for server in servers:
        assert not any((await server.held()).values())
    settings = replace(QUICK, nodes=tuple(server.url for server in servers))
    async with running_proxy(settings, listener):
        async with aiohttp.ClientSession(url) as http:
            async with beside(url, alone):
                yield Place(http, behind)
            assert (await http.get("/health")).status == 200
    for server in servers:
        async with as_before(server):  # which waits until nothing is held
            pass


async def test_what_is_broken_in_parallel(place: Place) -> None:
    async def one(path: str, what: str, data: bytes) -> None:
        async with place.http.post(path, data=data) as response:
            answer = await response.read()
            assert response.status in (400, 413), (path, what, answer[:300])
            told(answer)

    bodies = {door.path: broken(door.body) for door in HTTP}
    num = len(next(iter(bodies.values())))
    for index in range(0, num, 4):  # on every route at once
        asked = [
            one(path, *each)
            for path in bodies
            for each in [*bodies[path].items()][index : index + 4]
        ]
        await asyncio.gather(*asked)


async def test_one_answer_for_one_key(place: Place) -> None:
    body = {"input": "hi", "max_output_tokens": 3}
    head = {"Idempotency-Key": f"race-{len(place.servers)}"}

    async def one() -> str:
        async with place.http.post(RESPONSES, json=body, headers=head) as response:
            answer = await response.json()
            assert response.status == 200, answer
            return str(answer["id"])

    assert len(set(await asyncio.gather(*(one() for _ in range(12))))) == 1


async def test_one_session_of_a_name(place: Place) -> None:
    made = {"id": f"raced-{len(place.servers)}", "messages": [USER]}

    async def one(path: str, **body: Any) -> int:
        async with place.http.post(path, json=body) as response:
            await response.read()
            return response.status

    creates = Counter(await asyncio.gather(*(one("/v1/sessions", **made) for _ in range(12))))
    assert creates[200] == 1 and creates.keys() <= {200, 409, 429}
    path = f"/v1/sessions/{made['id']}"
    turn = {"input": "hi", "max_output_tokens": 2}
    turns = await asyncio.gather(*(one(f"{path}/turns", **turn) for _ in range(8)))
    assert set(turns) == {200}
    async with place.http.get(f"{path}/messages") as response:
        assert len((await response.json())["data"]) == 1 + 2 * 8
    gone = await asyncio.gather(*(place.http.delete(path) for _ in range(6)))
    assert sorted(each.status for each in gone) == [200, *[404] * 5]


async def test_sockets_in_parallel(place: Place) -> None:
    async def one(index: int) -> None:
        async with connected(place.http) as socket:
            await socket.raw("{")
            assert (await socket.receive())["status"] == 400
            await socket.ws.send_bytes(b"{}")
            assert (await socket.receive())["status"] == 400
            await socket.send("response.create", input="hi", max_output_tokens=2, store=False)
            await socket.until("response.completed", "response.incomplete")
            if index % 3 == 0:
                socket.ws._response.connection.transport.abort()
            elif index % 3 == 1:
                await socket.ws._writer.send_frame(b"x", 3)  # an opcode that is none
                assert await socket.closed() == aiohttp.WSCloseCode.PROTOCOL_ERROR

    await asyncio.gather(*map(one, range(24)))
