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

from lmserve.messages import unpack_ids
from lmserve.server.app import build_app
from lmserve.server.lifecycle import running_server
from lmserve.settings import SessionSettings, Settings, StreamSettings
from tests.server.talk import HELLO, HI, Talk, begin, ids, read_events


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    return replace(settings, sessions=SessionSettings(data_dir=str(tmp_path)))


def text_of(turn: Any) -> str:
    return "".join(part["text"] for item in turn["output"] for part in item["content"])


@pytest.fixture
async def talk(client: TestClient) -> Talk:
    return await begin(client, id="talk")


async def test_a_turn(talk: Talk, fake: Any) -> None:
    fake.will_say("Hel", "lo")
    turn = await talk.turn(input="hi", temperature=0)
    assert (turn["object"], turn["session"], turn["model"]) == ("response", "talk", "mock")
    assert (turn["conversation"], turn["store"]) == (None, True)
    listed = await talk.get("/messages")
    assert ids(listed) == [*turn["input_message_ids"], turn["message_id"]]
    assert (text_of(turn), turn["status"]) == ("Hello", "completed")
    usage = turn["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["input_tokens_details"]["cached_tokens"] == 0
    assert (await talk.get())["head"] == turn["message_id"]
    async with talk.client.get(f"/v1/responses/{turn['id']}") as response:
        assert await response.json() == turn


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
    assert names[0] == "response.created" and names[-1] == "response.completed"
    assert told[0][1]["response"]["session"] == again.id
    assert "".join(data.get("delta", "") for _, data in told) == "Hello"
    completed = told[-1][1]["response"]
    assert response.headers["X-Stream-Id"] == completed["id"]
    assert list(completed) == list(whole)
    assert (text_of(completed), completed["usage"]) == ("Hello", whole["usage"])
    assert (await again.get())["head"] == completed["message_id"]


async def test_editing_makes_a_sibling(talk: Talk, fake: Any) -> None:
    fake.will_say("Hello").will_say("A").will_say("B")
    first = await talk.turn(input="hi")
    second = await talk.turn(input="one")
    third = await talk.turn(input="two", edit=second["input_message_ids"][0])
    assert await talk.line() == ["hi", "Hello", "two", "B"]
    assert await talk.line(at=second["message_id"]) == ["hi", "Hello", "one", "A"]
    listed = await talk.get("/messages")
    assert listed["data"][2]["siblings"] == [
        *second["input_message_ids"],
        *third["input_message_ids"],
    ]
    assert listed["data"][2]["parent"] == first["message_id"]
    fake.will_say("B")
    flat = [HI, HELLO, {"role": "user", "content": "two"}]
    await talk.client.post("/v1/chat/completions", json={"messages": flat})
    assert fake.submits[2].token_ids == fake.submits[3].token_ids


async def test_editing_the_first_message(talk: Talk, fake: Any) -> None:
    fake.will_say("Hello").will_say("A")
    first = await talk.turn(input="hi")
    await talk.turn(input="yo", edit=first["input_message_ids"][0])
    assert await talk.line() == ["yo", "A"]


async def test_regenerating_makes_a_sibling_answer(talk: Talk, fake: Any) -> None:
    fake.will_say("A").will_say("B").will_say("C")
    first = await talk.turn(input="hi")
    second = await talk.turn(regenerate=first["message_id"])
    assert second["input_message_ids"] == []
    assert await talk.line() == ["hi", "B"]
    assert len({submit.token_ids for submit in fake.submits}) == 1
    third = await talk.turn(regenerate=first["id"])  # its response names it as well
    made = (await talk.get("/messages"))["data"][-1]
    assert made["parent"] == first["input_message_ids"][0]
    assert made["siblings"] == [each["message_id"] for each in (first, second, third)]


async def test_going_on_with_an_answer(talk: Talk, fake: Any) -> None:
    fake.will_say("Hel", finish="length").will_say("lo")
    first = await talk.turn(input="hi", max_output_tokens=3)
    assert first["status"] == "incomplete"
    second = await talk.turn(**{"continue": first["message_id"]})
    assert text_of(second) == "Hello"
    assert await talk.line() == ["hi", "Hello"]
    made = (await talk.get("/messages"))["data"][-1]
    assert made["siblings"] == [first["message_id"], second["message_id"]]
    refused = await talk.turn(409, **{"continue": second["message_id"]})
    assert refused["error"]["code"] == "response_conflict"
    assert refused["error"]["param"] == "continue"


async def test_what_is_being_made_is_followed_by_nothing(talk: Talk, fake: Any) -> None:
    fake.will_say("Hello").will_hang("Hel")
    first = await talk.turn(input="hi")
    body = {"input": "yo", "previous_response_id": first["id"], "background": True}
    async with talk.client.post("/v1/responses", json=body) as response:
        made = (await response.json())["message_id"]
    for path, field, rest in (
        ("/turns", "after", {"input": "x"}),
        ("/messages", "after", {"messages": [HI]}),
        ("/draft", "after", {"text": "x"}),
        ("/fork", "at", {}),
        ("", "head", {}),
    ):
        error = (await talk.post(path, rest | {field: made}, 409))["error"]
        assert (error["code"], error["param"]) == ("response_conflict", field)
        assert error["message"].startswith(f"{field} is {made!r}: ")


async def test_only_answers_are_made_again(talk: Talk, fake: Any) -> None:
    fake.will_say("A")
    turn = await talk.turn(input="hi")
    for field in ("regenerate", "continue"):
        refused = await talk.turn(400, **{field: turn["input_message_ids"][0]})
        assert refused["error"]["param"] == field
    other = await begin(talk.client)
    await other.turn(404, regenerate=turn["id"])


async def test_a_turn_after_any_message_or_none(talk: Talk, fake: Any) -> None:
    fake.will_say("A").will_say("B").will_say("C").will_say("D")
    first = await talk.turn(input="1")
    await talk.turn(input="2")
    await talk.turn(input="3", after=first["message_id"])
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
    while b"output_text.delta" not in stream:
        stream += await running.content.readany()
    assert await talk.post("/cancel", None) == {"cancelled": True}
    name, data = read_events(stream + await running.read())[-1]
    assert (name, data["response"]["status"]) == ("response.incomplete", "cancelled")
    assert text_of(data["response"]) == "Hel"
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
    assert (await first)["status"] == "cancelled"
    await asyncio.gather(second, third)
    line = await talk.line()
    assert line[0] == "1" and sorted(line[2:]) == ["2", "A", "hi"]


async def test_deleting_while_it_answers(talk: Talk, fake: Any) -> None:
    fake.will_hang("Hel")
    running = await talk.client.post(f"{talk.url}/turns", json={"input": "hi", "stream": True})
    await running.content.readuntil(b"\n\n")
    await talk.delete()
    assert b"event: response.incomplete" in await running.read()
    await talk.get(status=404)


@pytest.fixture
async def web(settings: Settings, fake: Any) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of the production entry, where a lost client cancels its handler, and none is
    waited for."""
    impatient = replace(settings, streams=StreamSettings(stream_grace_s=0.0))
    async with running_server(impatient, fake) as server, aiohttp.ClientSession(server.url) as web:
        yield web


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
    async with web.get(f"/v1/responses/{running.headers['X-Stream-Id']}") as response:
        left = await response.json()
    assert left["incomplete_details"] == {"reason": "abandoned"}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure(talk: Talk, fake: Any, stream: bool) -> None:
    fake.will_fail("out of luck", "x").will_say("Hello")
    response = await talk.client.post(f"{talk.url}/turns", json={"input": "hi", "stream": stream})
    if stream:
        name, data = read_events(await response.read())[-1]
        assert name == "response.failed"
        assert data["response"]["error"]["message"] == "out of luck"
    else:
        assert response.status == 500
        assert (await response.json())["error"]["message"] == "out of luck"
    await talk.turn(input="hi")
    assert (await talk.line())[-2:] == ["hi", "Hello"]


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
    assert (await running)["status"] == "cancelled"
