"""Sessions over the WebSocket: what REST does, in order, and what is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from lmserve.settings import SessionSettings, Settings
from tests.server.sockets import Socket, connected
from tests.server.talk import HI, Talk, ids


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    return replace(settings, sessions=SessionSettings(data_dir=str(tmp_path)))


@pytest.fixture
async def socket(client: TestClient) -> AsyncIterator[Socket]:
    async with connected(client) as socket:
        yield socket


async def test_each_call_says_what_rest_says(socket: Socket, client: TestClient) -> None:
    made = await socket.call("session.create", id="a", title="A", messages=[HI])
    talk = Talk(client, "a")
    assert await socket.call("session.get", session="a") == await talk.get()
    assert await talk.get() == made | {"running": []}
    added = await socket.call("session.append", session="a", messages=[HI, HI])
    listed = await socket.call("session.messages", session="a")
    assert listed == await talk.get("/messages")
    assert ids(added) == ids(listed)[1:]
    tree = await socket.call("session.messages", session="a", tree=True)
    assert tree == await talk.get("/messages?tree=true")
    at = await socket.call("session.messages", session="a", at=ids(listed)[0])
    assert ids(at) == ids(listed)[:1]
    assert await socket.call("session.export", session="a") == await talk.get("/export")


async def test_changing_one(socket: Socket) -> None:
    await socket.call("session.create", id="a", messages=[HI, HI])
    first, second = ids(await socket.call("session.messages", session="a"))
    renamed = await socket.call("session.update", session="a", title="B")
    assert (renamed["title"], renamed["head"]) == ("B", second)
    assert (await socket.call("session.rollback", session="a", to=first))["head"] == first
    assert (await socket.call("session.rollback", session="a", to="root"))["head"] is None
    assert (await socket.call("session.update", session="a", head=second))["head"] == second
    fork = await socket.call("session.fork", session="a", at=first, id="f")
    assert (fork["id"], fork["num_messages"]) == ("f", 1)
    export = await socket.call("session.export", session="a")
    assert (await socket.call("session.import", session=export, id="i"))["num_messages"] == 2
    assert await socket.call("session.cancel", session="a") == {"cancelled": False}
    assert (await socket.call("session.delete", session="a"))["deleted"] is True
    page = await socket.call("session.list", limit=1)
    rest = await socket.call("session.list", after=page["last_id"])
    assert {*ids(page), *ids(rest)} == {"f", "i"} and page["has_more"]


async def test_an_answer_names_the_event_it_answers(socket: Socket) -> None:
    await socket.send("session.create", id="a", event_id="one")
    assert (await socket.receive())["event_id"] == "one"
    await socket.send("session.list")
    assert "event_id" not in await socket.receive()
    error = await socket.error("session.get", session="none", event_id="two")
    assert (error["event_id"], error["status"]) == ("two", 404)


async def test_calls_on_one_session_are_done_in_order(socket: Socket) -> None:
    await socket.send("session.create", id="a", event_id="0")
    for number in range(1, 20):
        said = {"role": "user", "content": str(number)}
        await socket.send("session.append", session="a", messages=[said], event_id=str(number))
    await socket.send("session.messages", session="a", event_id="end")
    events = [await socket.receive() for _ in range(21)]
    assert [event["event_id"] for event in events] == [*map(str, range(20)), "end"]
    said = [message["content"] for message in events[-1]["result"]["data"]]
    assert said == [str(number) for number in range(1, 20)]


async def test_two_writers_on_one_session(client: TestClient) -> None:
    async with connected(client) as one, connected(client) as two:
        await one.call("session.create", id="a")
        for socket in (one, two):
            for _ in range(5):
                await socket.send("session.append", session="a", messages=[HI])
        for socket in (one, two):
            for _ in range(5):
                assert (await socket.receive())["type"] == "session.append.done"
        line = await two.call("session.messages", session="a")
        assert len(line["data"]) == 10


@pytest.mark.parametrize(
    ("event", "status", "param"),
    [
        ({"type": "session.get", "session": "none"}, 404, "session"),
        ({"type": "session.get", "session": "no such id!"}, 404, "session"),
        ({"type": "session.get"}, 400, "session"),
        ({"type": "session.get", "session": 7}, 400, "session"),
        ({"type": "session.append", "session": "a", "messages": []}, 400, "messages"),
        (
            {"type": "session.append", "session": "a", "messages": [HI], "after": "msg_9"},
            404,
            "after",
        ),
        ({"type": "session.append", "session": "a", "messages": [{"role": "x"}]}, 400,
         "messages[0].role"),
        ({"type": "session.rollback", "session": "a", "to": "msg_9"}, 404, "to"),
        ({"type": "session.update", "session": "a"}, 400, None),
        ({"type": "session.update", "title": "x"}, 400, "session"),
        ({"type": "session.list", "limit": 1000}, 400, "limit"),
        ({"type": "session.list", "after": "none"}, 404, "after"),
        ({"type": "session.cancel"}, 400, "session"),
        ({"type": "session.create", "id": "a"}, 409, None),
        ({"type": "session.create", "id": "a b"}, 400, "id"),
        ({"type": "session.fork", "session": "a", "at": "nine"}, 404, "at"),
        ({"type": "session.messages", "session": "a", "at": "msg_1", "tree": True}, 400, "at"),
        ({"type": "session.import", "session": {"format": "x", "version": 1, "messages": []}},
         400, "session.format"),
    ],
)  # fmt: skip
async def test_what_is_refused(
    socket: Socket, event: dict[str, Any], status: int, param: str | None
) -> None:
    await socket.call("session.create", id="a")
    error = await socket.error(**event)
    assert (error["status"], error["error"]["param"]) == (status, param)
    assert error["error"]["message"]
    assert (await socket.call("session.get", session="a"))["num_messages"] == 0
