"""Answers over the WebSocket, as plain JSON: lanes, steering, resuming, and what is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from lmserve.settings import SessionSettings, Settings
from tests.server.sockets import Socket, connected

ENDS = ("response.completed", "response.incomplete", "response.failed")


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    return replace(settings, sessions=SessionSettings(data_dir=str(tmp_path)))


@pytest.fixture
async def socket(client: TestClient) -> AsyncIterator[Socket]:
    async with connected(client) as socket:
        yield socket


async def answered(socket: Socket, **fields: Any) -> list[Any]:
    await socket.send("response.create", **fields)
    return await socket.until(*ENDS)


def text(events: list[Any]) -> str:
    return "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta")


def names(events: list[Any]) -> list[str]:
    return [event["type"] for event in events]


async def test_an_answer(socket: Socket, fake: Any) -> None:
    fake.will_say("Hel", "lo")
    events = await answered(socket, input="hi")
    assert names(events)[:2] == ["response.created", "response.in_progress"]
    assert names(events)[-1] == "response.completed"
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert text(events) == "Hello"
    assert not any("stream_id" in event for event in events)


async def test_the_same_events_over_http(socket: Socket, client: TestClient, fake: Any) -> None:
    fake.will_say("Hel", "lo")
    events = await answered(socket, input="hi")
    id = events[0]["response"]["id"]
    response = await client.get(f"/v1/responses/{id}?stream=true")
    lines = (await response.text()).splitlines()
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    await socket.send("session.resume", response_id=id)
    resumed = {"response_id": id, "starting_after": -1, "last": len(events) - 1}
    assert (await socket.receive())["result"] == resumed
    assert [await socket.ws.receive_str() for _ in events] == data


async def test_the_next_follows_the_one_before(socket: Socket, fake: Any) -> None:
    fake.will_say("Hello").will_say("good")
    first = (await answered(socket, input="hi"))[-1]["response"]
    second = (await answered(socket, input="yo", previous_response_id=first["id"]))[-1]
    assert second["response"]["previous_response_id"] == first["id"]
    assert second["response"]["session"] == first["session"]
    listed = await socket.call("session.messages", session=first["session"])
    assert [message["content"] for message in listed["data"]] == ["hi", "Hello", "yo", "good"]


async def test_lanes_go_on_side_by_side(socket: Socket, fake: Any) -> None:
    fake.will_hang("Hel").will_say("good")
    await socket.send("response.create", input="1", stream_id="slow")
    slow = await socket.until("response.output_text.delta")
    await socket.send("response.create", input="2", stream_id="quick")
    quick = await socket.until("response.completed")
    assert {event["stream_id"] for event in slow} == {"slow"}
    assert {event["stream_id"] for event in quick} == {"quick"}
    assert text(quick) == "good"
    id = slow[0]["response"]["id"]
    await socket.send("session.cancel", response_id=id)
    events = [await socket.receive() for _ in range(5)]
    [done] = [event for event in events if event["type"] == "session.cancel.done"]
    assert done["result"]["status"] == "cancelled"
    assert "response.incomplete" in names(events)


async def test_a_lane_answers_in_order(socket: Socket, fake: Any) -> None:
    fake.will_hang("A").will_say("B").will_say("C")
    for said in ("1", "2", "3"):
        await socket.send("response.create", input=said, stream_id="lane")
    first = await socket.until("response.output_text.delta")
    await socket.send("session.cancel", response_id=first[0]["response"]["id"], event_id="x")
    told = text(first)
    num_ends = 0
    while num_ends < 3:
        event = await socket.receive()
        num_ends += event["type"] in ENDS
        told += event.get("delta", "")
    assert told == "ABC"


async def test_too_much_for_one_lane(socket: Socket, fake: Any) -> None:
    fake.will_hang("A")
    await socket.send("response.create", input="1", stream_id="lane")
    await socket.until("response.output_text.delta")
    for _ in range(9):
        await socket.send("response.create", input="2", stream_id="lane")
    error = await socket.receive()
    assert (error["type"], error["status"], error["stream_id"]) == ("error", 429, "lane")
    assert error["error"]["headers"] == {"Retry-After": "1"}


async def test_too_many_lanes(socket: Socket, fake: Any) -> None:
    for number in range(32):
        fake.will_hang("A")
        await socket.send("response.create", input="1", stream_id=f"lane{number}")
        await socket.until("response.output_text.delta")
    error = await socket.error("response.create", input="1", stream_id="one.more")
    assert (error["status"], error["stream_id"]) == (429, "one.more")


# --- steering -------------------------------------------------------------------------------


async def test_steering(socket: Socket, fake: Any) -> None:
    fake.will_hang("Hel").will_say("good")
    await socket.send("response.create", input="hi", stream_id="lane")
    events = await socket.until("response.output_text.delta")
    id = events[0]["response"]["id"]
    await socket.send("response.steer", previous_response_id=id, input="shorter")
    events = await socket.until("response.completed")
    assert {event["stream_id"] for event in events} == {"lane"}
    order = [name for name in names(events) if not name.startswith("response.output_")]
    accepted, incomplete = (order.index(f"response.{n}") for n in ("steer.accepted", "incomplete"))
    created = order.index("response.created")
    assert accepted < incomplete < created
    [incomplete] = [e["response"] for e in events if e["type"] == "response.incomplete"]
    assert incomplete["incomplete_details"] == {"reason": "steered"}
    [accepted] = [e for e in events if e["type"] == "response.steer.accepted"]
    assert accepted["steer"]["previous_response_id"] == id
    [applied] = [e for e in events if e["type"] == "session.steer.applied"]
    assert applied["steer_id"] == accepted["steer"]["id"]
    assert applied["successor_id"] == events[-1]["response"]["id"]
    assert events[-1]["response"]["previous_response_id"] == id


async def test_steering_from_another_connection(
    socket: Socket, client: TestClient, fake: Any
) -> None:
    fake.will_hang("Hel").will_say("good")
    await socket.send("response.create", input="hi")
    id = (await socket.until("response.output_text.delta"))[0]["response"]["id"]
    async with connected(client) as other:
        await other.send("response.steer", previous_response_id=id, input="shorter")
        accepted = await other.receive()
        assert accepted["type"] == "response.steer.accepted"
        assert isinstance(accepted["sequence_number"], int)
    assert text(await socket.until("response.completed")) == "good"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"previous_response_id": "resp_none", "input": "x"}, "response_not_found"),
        ({"input": ""}, "invalid_input"),
        ({"input": 7}, "invalid_input"),
        ({"input": [{"type": "message", "role": "system", "content": "x"}]}, "invalid_input"),
        ({"input": "too late"}, "response_already_completed"),
    ],
)
async def test_steering_that_fails(
    socket: Socket, fake: Any, fields: dict[str, Any], code: str
) -> None:
    fake.will_say("Hello")
    events = await answered(socket, input="hi", stream_id="lane")
    id = events[0]["response"]["id"]
    await socket.send("response.steer", **({"previous_response_id": id} | fields))
    event = await socket.receive()
    assert event["type"] == "response.steer.failed", event
    assert (event["error"]["code"], event["error"]["type"]) == (code, "invalid_request_error")
    assert event["steer"]["input"] == fields["input"]
    assert ("stream_id" in event) == (code != "response_not_found")


async def test_a_steer_that_names_no_answer(socket: Socket) -> None:
    await socket.send("response.steer", previous_response_id={"a": 1}, input="x")
    event = await socket.receive()
    assert (event["type"], event["error"]["code"]) == ("response.steer.failed", "invalid_input")
    assert event["steer"] == {"previous_response_id": "", "input": "x"}


# --- resuming -------------------------------------------------------------------------------


async def test_another_connection_goes_on(client: TestClient, fake: Any) -> None:
    fake.will_hang("Hel", "lo").will_say("good")
    async with connected(client) as socket:
        await socket.send("response.create", input="hi", stream_id="one")
        begun = await socket.until("response.in_progress")
    id, last = begun[0]["response"]["id"], begun[-1]["sequence_number"]
    async with connected(client) as socket:
        await socket.send(
            "session.resume", response_id=id, starting_after=last, stream_id="two", event_id="e"
        )
        done = await socket.receive()
        assert (done["type"], done["event_id"]) == ("session.resume.done", "e")
        rest: list[Any] = []
        while text(rest) != "Hello":
            rest.append(await socket.receive())
        await socket.send("response.steer", previous_response_id=id, input="shorter")
        rest += await socket.until("response.completed")
        assert {event["stream_id"] for event in rest} == {"two"}
        of_first = [*begun, *rest[: names(rest).index("response.incomplete") + 1]]
        assert [e["sequence_number"] for e in of_first] == list(range(len(of_first)))


async def test_a_steered_answer_is_shown_again_with_its_successor(
    client: TestClient, fake: Any
) -> None:
    fake.will_hang("Hel").will_say("good")
    async with connected(client) as socket:
        await socket.send("response.create", input="hi")
        events = await socket.until("response.output_text.delta")
        id = events[0]["response"]["id"]
        await socket.send("response.steer", previous_response_id=id, input="shorter")
        events += await socket.until("response.completed")
    async with connected(client) as socket:
        await socket.send("session.resume", response_id=id)
        await socket.receive()
        assert await socket.until("response.completed") == events


async def test_two_read_the_same(client: TestClient, fake: Any) -> None:
    fake.will_hang("Hello")
    async with connected(client) as one, connected(client) as two:
        await one.send("response.create", input="hi")
        first = await one.until("response.output_text.delta")
        id = first[0]["response"]["id"]
        await two.send("session.resume", response_id=id)
        await two.receive()
        assert await two.until("response.output_text.delta") == first
        await two.send("session.cancel", response_id=id)
        first += await one.until("response.incomplete")
        second = [event for event in first if "response" in event]
        assert second[-1]["response"]["status"] == "cancelled"


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"starting_after": 1000}, 400, "starting_after"),
        ({"starting_after": -2}, 400, "starting_after"),
        ({"starting_after": "1"}, 400, "starting_after"),
        ({"response_id": "resp_none"}, 404, "response_id"),
        ({"response_id": "strm_none"}, 404, None),
        ({"response_id": 7}, 400, "response_id"),
    ],
)
async def test_a_place_that_is_none(
    socket: Socket, fake: Any, fields: dict[str, Any], status: int, param: str | None
) -> None:
    fake.will_say("Hello")
    id = (await answered(socket, input="hi"))[0]["response"]["id"]
    error = await socket.error("session.resume", **({"response_id": id} | fields))
    assert (error["status"], error["error"]["param"]) == (status, param)


async def test_any_stream_is_shown(socket: Socket, client: TestClient, fake: Any) -> None:
    fake.will_say("Hel", "lo")
    body = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
    response = await client.post("/v1/chat/completions", json=body, headers={"X-Resumable": "true"})
    await response.read()
    id = response.headers["X-Stream-Id"]
    await socket.send("session.resume", response_id=id, stream_id="lane")
    await socket.receive()
    events = []
    while not events or events[-1]["data"] is not None:
        events.append(await socket.receive())
    assert names(events) == ["stream.event"] * len(events)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert {(event["response_id"], event["stream_id"]) for event in events} == {(id, "lane")}
    deltas = [event["data"]["choices"][0]["delta"] for event in events[:-1]]
    assert "".join(delta.get("content") or "" for delta in deltas) == "Hello"


# --- not stored -----------------------------------------------------------------------------


async def test_what_is_not_stored_is_one_connections(client: TestClient, fake: Any) -> None:
    fake.will_say("Hello").will_say("good")
    async with connected(client) as one, connected(client) as two:
        first = (await answered(one, input="hi", store=False))[-1]["response"]
        for type, field in (
            ("response.create", "previous_response_id"),
            ("session.resume", "response_id"),
            ("session.cancel", "response_id"),
        ):
            error = await two.error(type, **{field: first["id"], "input": "x"})
            assert (error["status"], error["error"]["param"]) == (404, field)
        following = {"previous_response_id": first["id"], "store": False}
        second = (await answered(one, input="yo", **following))[-1]["response"]
        assert second["previous_response_id"] == first["id"]


# --- in a session -----------------------------------------------------------------------------


async def test_a_turn_of_a_session(socket: Socket, fake: Any) -> None:
    fake.will_hang("Hel").will_say("good")
    await socket.call("session.create", id="a")
    await socket.send("response.create", input="hi", conversation="a")
    id = (await socket.until("response.output_text.delta"))[0]["response"]["id"]
    assert (await socket.call("session.get", session="a"))["running"] == [id]
    said = [{"role": "user", "content": "later"}]
    await socket.send("session.append", session="a", messages=said)  # it waits for the turn
    await socket.send("session.cancel", session="a")  # it does not
    events = [await socket.receive() for _ in range(6)]
    assert {"session.append.done", "session.cancel.done"} < set(names(events))
    line = await socket.call("session.messages", session="a")
    assert [message["content"] for message in line["data"]] == ["hi", "Hel", "later"]
    first = line["data"][0]["id"]
    events = await answered(socket, input="yo", conversation="a", edit=first)
    assert events[-1]["response"]["session"] == "a"
    line = await socket.call("session.messages", session="a")
    assert [message["content"] for message in line["data"]] == ["yo", "good"]


async def test_an_idempotency_key_joins(socket: Socket, client: TestClient, fake: Any) -> None:
    fake.will_say("Hello")
    events = await answered(socket, input="hi", idempotency_key="k")
    assert await answered(socket, input="hi", idempotency_key="k") == events
    error = await socket.error("response.create", input="yo", idempotency_key="k")
    assert (error["status"], error["error"]["code"]) == (409, "idempotency_key_reused")
    assert error["error"]["param"] == "idempotency_key"
    error = await socket.error("response.create", input="yo", idempotency_key="")
    assert (error["status"], error["error"]["param"]) == (400, "idempotency_key")
    response = await client.post(
        "/v1/responses", json={"input": "hi", "stream": True}, headers={"Idempotency-Key": "k"}
    )
    assert events[0]["response"]["id"] in await response.text()


async def test_a_draft_is_told_when_it_is_run(socket: Socket, fake: Any) -> None:
    await socket.call("session.create", id="a")
    await socket.send("session.draft", session="a", text="What is the capital of Fra")
    events = [await socket.receive(), await socket.receive()]
    assert set(names(events)) == {"session.draft.done", "session.draft.ready"}
    [done] = [event["result"] for event in events if "result" in event]
    assert (done["session"], done["num_chars"]) == ("a", 26)
    for fields, param in (
        ({"text": "x"}, "session"),
        ({"session": "none", "text": "x"}, "session"),
        ({"session": "a"}, "text"),
        ({"previous_response_id": "resp_none", "text": "x"}, "previous_response_id"),
    ):
        error = await socket.error("session.draft", **fields)
        assert error["error"]["param"] == param, error


# --- settings of a running one ----------------------------------------------------------------


async def test_changing_settings_while_it_runs(socket: Socket, fake: Any) -> None:
    fake.will_hang("Hello")
    await socket.send("response.create", input="hi")
    begun = await socket.until("response.output_text.delta")
    response = begun[0]["response"]
    for which in ({"response_id": response["id"]}, {"session": response["session"]}):
        await socket.send("session.update", max_output_tokens=50, stop="x", **which)
        events = [await socket.receive(), await socket.receive()]
        assert set(names(events)) == {"session.updated", "session.update.done"}
        [updated] = [event for event in events if event["type"] == "session.updated"]
        assert updated["changes"] == {"max_output_tokens": 50, "stop": ["x"]}
    error = await socket.error("session.update", response_id="resp_none", temperature=0)
    assert error["status"] == 404
