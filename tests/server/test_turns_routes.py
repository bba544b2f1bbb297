"""POST /v1/sessions/{id}/turns over a fake engine: answers within the tree, and their ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestClient
from pytest_aiohttp import AiohttpClient

from lmserve.errors import StoreError
from lmserve.messages import unpack_ids
from lmserve.server.app import build_app
from lmserve.server.lifecycle import Server
from lmserve.service.sessions import Turn
from lmserve.settings import SessionSettings, Settings
from tests.server.talk import HELLO, HI, Talk, begin, ids, read_events


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    return replace(settings, sessions=SessionSettings(data_dir=str(tmp_path)))


@pytest.fixture
async def talk(client: TestClient) -> Talk:
    return await begin(client, id="talk")


async def test_a_turn(talk: Talk, fake: Any) -> None:
    fake.will_say("Hel", "lo")
    turn = await talk.turn(input="hi", temperature=0)
    assert (turn["object"], turn["session"], turn["model"]) == ("session.turn", "talk", "mock")
    listed = await talk.get("/messages")
    assert ids(listed) == [*turn["input"], turn["id"]]
    assert listed["data"][1] == turn["message"]
    assert (turn["message"]["role"], turn["message"]["content"]) == ("assistant", "Hello")
    assert turn["finish_reason"] == "stop"
    usage = turn["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0}
    assert (await talk.get())["head"] == turn["id"]


async def test_the_next_turn_goes_on(talk: Talk, fake: Any) -> None:
    fake.will_say("Hello").will_say("good")
    await talk.turn(input="hi")
    await talk.turn(input=[{"role": "user", "content": "yo"}])
    assert await talk.line() == ["hi", "Hello", "yo", "good"]
    one, two = (unpack_ids(submit.token_ids) for submit in fake.submits)
    assert two[: len(one) + 5] == [*one, *b"Hello"]


async def test_a_streamed_turn(talk: Talk, fake: Any) -> None:
    fake.will_say("Hel", "lo").will_say("Hel", "lo")
    whole = await talk.turn(input="hi")
    again = await begin(talk.client)
    response = await talk.client.post(f"{again.url}/turns", json={"input": "hi", "stream": True})
    assert response.content_type == "text/event-stream"
    assert response.headers["X-Session-Id"] == again.id
    told = read_events(await response.read())
    names = [name for name, _ in told]
    assert names[0] == "turn.started" and names[-1] == "turn.completed"
    assert set(names[1:-1]) == {"turn.delta"}
    assert (told[0][1]["session"], told[0][1]["model"]) == (again.id, "mock")
    assert "".join(data["text"] for _, data in told[1:-1]) == "Hello"
    completed = told[-1][1]["turn"]
    assert completed["message"]["content"] == "Hello"
    assert list(completed) == list(whole)
    assert completed["usage"] == whole["usage"]
    assert (await again.get("/messages"))["data"][-1] == completed["message"]


async def test_editing_makes_a_sibling(talk: Talk, fake: Any) -> None:
    fake.will_say("Hello").will_say("A").will_say("B")
    first = await talk.turn(input="hi")
    second = await talk.turn(input="one")
    third = await talk.turn(input="two", edit=second["input"][0])
    assert await talk.line() == ["hi", "Hello", "two", "B"]
    assert await talk.line(at=second["id"]) == ["hi", "Hello", "one", "A"]
    listed = await talk.get("/messages")
    assert listed["data"][2]["siblings"] == [*second["input"], *third["input"]]
    assert listed["data"][2]["parent"] == first["id"]
    fake.will_say("B")
    flat = [HI, HELLO, {"role": "user", "content": "two"}]
    await talk.client.post("/v1/chat/completions", json={"messages": flat})
    assert fake.submits[2].token_ids == fake.submits[3].token_ids


async def test_editing_the_first_message(talk: Talk, fake: Any) -> None:
    fake.will_say("Hello").will_say("A")
    first = await talk.turn(input="hi")
    await talk.turn(input="yo", edit=first["input"][0])
    assert await talk.line() == ["yo", "A"]


async def test_regenerating_makes_a_sibling_answer(talk: Talk, fake: Any) -> None:
    fake.will_say("A").will_say("B").will_say("C")
    first = await talk.turn(input="hi")
    second = await talk.turn(regenerate=first["id"])
    assert second["input"] == []
    assert second["message"]["parent"] == first["input"][0]
    assert second["message"]["siblings"] == [first["id"], second["id"]]
    assert await talk.line() == ["hi", "B"]
    assert len({submit.token_ids for submit in fake.submits}) == 1
    third = await talk.turn(regenerate=first["id"])
    assert third["message"]["siblings"] == [first["id"], second["id"], third["id"]]


async def test_a_turn_after_any_message_or_none(talk: Talk, fake: Any) -> None:
    fake.will_say("A").will_say("B").will_say("C").will_say("D")
    first = await talk.turn(input="1")
    await talk.turn(input="2")
    await talk.turn(input="3", after=first["id"])
    assert await talk.line() == ["1", "A", "3", "C"]
    await talk.turn(input="4", after="root")
    assert await talk.line() == ["4", "D"]
    tree = await talk.get("/messages?tree=true")
    texts = [message["content"] for message in tree["data"]]
    assert sorted(texts) == sorted(["1", "A", "2", "B", "3", "C", "4", "D"])
    seen: set[str | None] = {None}
    for message in tree["data"]:
        assert message["parent"] in seen
        seen.add(message["id"])
    roots = [message["id"] for message in tree["data"] if message["parent"] is None]
    assert (await talk.get("/messages"))["data"][0]["siblings"] == roots
    assert not any("siblings" in message for message in tree["data"])
    assert (await talk.get())["num_messages"] == 8


# --- stopping -------------------------------------------------------------------------------


async def test_cancelling(talk: Talk, fake: Any) -> None:
    assert await talk.post("/cancel", None) == {"cancelled": False}
    fake.will_hang("Hel")
    running = await talk.client.post(f"{talk.url}/turns", json={"input": "hi", "stream": True})
    stream = b""
    while b"turn.delta" not in stream:
        stream += await running.content.readany()
    assert await talk.post("/cancel", None) == {"cancelled": True}
    name, data = read_events(stream + await running.read())[-1]
    assert (name, data["turn"]["finish_reason"]) == ("turn.completed", "abort")
    assert data["turn"]["message"]["content"] == "Hel"
    assert await talk.line() == ["hi", "Hel"]


async def test_two_writers_are_served_in_order(talk: Talk, fake: Any) -> None:
    fake.will_hang("Hel")
    first = asyncio.create_task(talk.turn(input="1"))
    await fake.submitted.wait()
    fake.will_say("A")
    second = asyncio.create_task(talk.turn(input="2"))
    third = asyncio.create_task(talk.post("/messages", {"messages": [HI]}))
    await talk.get()  # reading waits for nobody
    await talk.post("/cancel", None)
    assert (await first)["finish_reason"] == "abort"
    await asyncio.gather(second, third)
    line = await talk.line()
    assert line[0] == "1" and sorted(line[2:]) == ["2", "A", "hi"]


async def test_deleting_while_it_answers(talk: Talk, fake: Any) -> None:
    fake.will_hang("Hel")
    running = await talk.client.post(f"{talk.url}/turns", json={"input": "hi", "stream": True})
    await running.content.readuntil(b"\n\n")
    await talk.delete()
    rest = await running.read()
    assert b"event: error" in rest and b"session_busy" in rest
    await talk.get(status=404)


@pytest.fixture
async def web(server: Server) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of the production entry, where a lost client cancels its handler."""
    async with aiohttp.ClientSession(server.url) as session:
        yield session


async def test_what_a_client_that_left_was_told_is_kept(
    web: aiohttp.ClientSession, fake: Any
) -> None:
    talk = await begin(web)
    fake.will_hang("Hel")
    async with web.post(f"{talk.url}/turns", json={"input": "hi", "stream": True}) as running:
        while b"Hel" not in await running.content.readany():
            pass
    await fake.aborted.wait()
    fake.will_say("good")
    await talk.turn(input="yo")  # waits for the one before
    assert await talk.line() == ["hi", "Hel", "yo", "good"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure(talk: Talk, fake: Any, stream: bool) -> None:
    fake.will_fail("out of luck", "x").will_say("Hello")
    response = await talk.client.post(f"{talk.url}/turns", json={"input": "hi", "stream": stream})
    if stream:
        name, data = read_events(await response.read())[-1]
        assert (name, data["error"]["message"]) == ("error", "out of luck")
    else:
        assert response.status == 500
        assert (await response.json())["error"]["message"] == "out of luck"
    await talk.turn(input="hi")
    assert (await talk.line())[-2:] == ["hi", "Hello"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_turn_that_could_not_be_kept_is_not_told_as_done(
    talk: Talk, fake: Any, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def settled(self: Turn) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(Turn, "settled", settled)
    fake.will_say("Hello")
    response = await talk.client.post(f"{talk.url}/turns", json={"input": "hi", "stream": stream})
    told = await response.read()
    assert b"the disk is full" in told and b"turn.completed" not in told
    assert response.status == (200 if stream else 500)


async def test_a_busy_session_may_refuse(
    aiohttp_client: AiohttpClient, settings: Settings, fake: Any
) -> None:
    strict = replace(settings.sessions, session_busy="refuse")
    client = await aiohttp_client(build_app(replace(settings, sessions=strict), fake))
    talk = await begin(client)
    fake.will_hang("Hel")
    running = asyncio.create_task(talk.turn(input="1"))
    await fake.submitted.wait()
    assert (await talk.turn(409, input="2"))["error"]["code"] == "session_busy"
    await talk.post("/messages", {"messages": [HI]}, 409)
    await talk.post("/cancel", None)
    assert (await running)["finish_reason"] == "abort"
