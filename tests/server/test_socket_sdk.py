"""The official client's `responses.connect()` against the running server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI, OpenAI
from openai.lib.responses_websocket import (
    AsyncResponsesWebSocketSession,
    ResponsesWebSocketAccumulator,
    ResponsesWebSocketError,
    ResponsesWebSocketLimits,
    ResponsesWebSocketSession,
)
from openai.types.responses import ResponseSteerAcceptedEvent, ResponseSteerFailedEvent
from openai.types.responses.responses_server_event import ResponseWsError
from openai.types.websocket_reconnection import ReconnectingEvent

from lmserve.server.lifecycle import Server, running_server
from lmserve.settings import SessionSettings, Settings
from tests.server.conftest import WatchedEngine
from tests.server.sdk_types import TYPES

LIMITS = ResponsesWebSocketLimits(
    max_lanes=8,
    max_events_per_lane=1000,
    max_events=4000,
    max_bytes_per_lane=2**20,
    max_bytes=2**22,
)
ENDS = ("response.completed", "response.incomplete", "response.failed")


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    return replace(settings, sessions=SessionSettings(data_dir=str(tmp_path)))


@pytest.fixture
async def api(server: Server) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@asynccontextmanager
async def laned(api: AsyncOpenAI) -> AsyncIterator[AsyncResponsesWebSocketSession]:
    async with (
        api.responses.connect() as connection,
        AsyncResponsesWebSocketSession(connection, limits=LIMITS) as session,
    ):
        yield session


def create(**fields: Any) -> Any:
    return {"type": "response.create", "model": "mock", **fields}


async def until_end(connection: Any) -> list[Any]:
    events = []
    async for event in connection:
        events.append(event)
        if event.type in ENDS:
            break
    return events


async def test_events_are_what_the_client_takes_them_for(api: AsyncOpenAI, fake: Any) -> None:
    fake.will_say("Hel", "lo")
    async with api.responses.connect() as connection:
        await connection.response.create(model="mock", input="hi")
        events = await until_end(connection)
    for event in events:
        type(event).model_validate_json(event.to_json())
        assert isinstance(event, TYPES[event.type])
    assert events[-1].response.output_text == "Hello"
    assert events[-1].response.usage.input_tokens > 0


async def test_a_conversation(api: AsyncOpenAI, fake: Any) -> None:
    fake.will_say("unheard").will_say("Hello").will_say("good")
    async with api.responses.connect() as connection:
        await connection.response.create(model="mock", input="hi", generate=False)
        warm = (await until_end(connection))[-1].response
        assert (warm.status, warm.output) == ("completed", [])
        await connection.response.create(model="mock", previous_response_id=warm.id, input=[])
        first = (await until_end(connection))[-1].response
        assert first.output_text == "Hello"
        await connection.response.create(
            model="mock", previous_response_id=first.id, input=[{"role": "user", "content": "yo"}]
        )
        second = (await until_end(connection))[-1].response
    assert (second.output_text, second.previous_response_id) == ("good", first.id)
    assert (await api.responses.retrieve(second.id)).output_text == "good"


async def test_lanes(api: AsyncOpenAI, fake: Any) -> None:
    fake.will_say("A").will_say("B").will_say("C")
    async with laned(api) as session:
        one, two = session.lane("one"), session.lane("two")
        await one.send(create(input="1"))
        first = await one.get_final_response()
        await asyncio.gather(
            one.send(create(input="2", previous_response_id=first.id)),
            two.send(create(input="3", previous_response_id=first.id)),
        )
        answers = await asyncio.gather(one.get_final_response(), two.get_final_response())
    assert first.output_text == "A"
    assert {answer.output_text for answer in answers} == {"B", "C"}
    assert {answer.previous_response_id for answer in answers} == {first.id}


async def test_an_error_is_its_lanes(api: AsyncOpenAI, fake: Any) -> None:
    fake.will_say("A")
    async with laned(api) as session:
        bad, good = session.lane("bad"), session.lane("good")
        await bad.send(create(input="1", previous_response_id="resp_none"))
        with pytest.raises(ResponsesWebSocketError) as raised:
            await bad.get_final_response()
        event = raised.value.event
        assert isinstance(event, ResponseWsError)
        assert (event.status, event.error.code) == (404, "previous_response_not_found")
        assert event.error.param == "previous_response_id"
        await good.send(create(input="1"))
        assert (await good.get_final_response()).output_text == "A"


async def test_steering(api: AsyncOpenAI, fake: Any) -> None:
    fake.will_hang("Hel").will_say("good")
    async with laned(api) as session:
        lane = session.lane("lane")
        await lane.send(create(input="hi"))
        while (event := await lane.recv()).type != "response.output_text.delta":
            if event.type == "response.created":
                first = event.response.id
        steer: Any = {"type": "response.steer", "previous_response_id": first, "input": "shorter"}
        await lane.send(steer)
        steered = await lane.get_final_response()
        assert (steered.id, steered.status) == (first, "incomplete")
        assert steered.incomplete_details is not None
        assert steered.incomplete_details.reason == "steered"
        while (event := await lane.recv()).type != "response.created":
            pass
        successor = await lane.get_final_response()
    assert successor.id == event.response.id != first
    assert (successor.previous_response_id, successor.output_text) == (first, "good")


async def test_steering_events(api: AsyncOpenAI, fake: Any) -> None:
    fake.will_hang("Hel").will_say("good")
    accumulator = ResponsesWebSocketAccumulator()
    async with api.responses.connect() as connection:
        await connection.response.create(model="mock", input="hi")
        events = []
        async for event in connection:
            events.append(event)
            accumulator.add_event(event)
            if event.type == "response.output_text.delta" and len(events) < 7:
                await connection.response.steer(
                    previous_response_id=events[0].response.id,
                    input=[{"type": "message", "role": "user", "content": "shorter"}],
                )
            elif event.type == "response.incomplete":
                assert accumulator.get_final_response().output_text == "Hel"
                accumulator.reset()
            elif event.type == "response.completed":
                break
        assert accumulator.snapshot().output_text == "good"
        assert accumulator.get_final_response().output_text == "good"
        await connection.response.steer(previous_response_id=events[0].response.id, input="late")
        failed = await connection.recv()
    [accepted] = [e for e in events if e.type == "response.steer.accepted"]
    assert isinstance(accepted, ResponseSteerAcceptedEvent)
    assert "session.steer.applied" in [event.type for event in events]
    assert isinstance(failed, ResponseSteerFailedEvent)
    assert (failed.error.code, failed.steer.input) == ("response_already_completed", "late")


async def test_our_events_break_nothing(api: AsyncOpenAI, fake: Any) -> None:
    fake.will_say("Hello")
    accumulator = ResponsesWebSocketAccumulator()
    async with api.responses.connect() as connection:
        ours: Any = {"type": "session.create", "id": "a"}
        await connection.send(ours)
        event: Any = await connection.recv()
        assert event.type == "session.create.done"
        assert event.result["id"] == "a"
        accumulator.add_event(event)
        await connection.response.create(model="mock", input="hi", conversation="a")
        for event in await until_end(connection):
            accumulator.add_event(event)
        assert accumulator.get_final_response().output_text == "Hello"
        seen = []

        async def on_done(event: Any) -> None:
            seen.append(event.result["head"])
            none: Any = {"type": "no.such"}
            await connection.send(none)

        connection.on("session.get.done", on_done)
        ours = {"type": "session.get", "session": "a"}
        await connection.send(ours)
        with pytest.raises(Exception, match="WebSocket error"):
            await connection.dispatch_events()
        assert seen == [accumulator.get_final_response().output[0].id]


async def test_what_is_not_stored_is_chained_on_one_connection(api: AsyncOpenAI, fake: Any) -> None:
    fake.will_say("A").will_say("B")
    async with laned(api) as session:
        lane = session.default
        await lane.send(create(input="1", store=False))
        first = await lane.get_final_response()
        await lane.send(create(input="2", store=False, previous_response_id=first.id))
        assert (await lane.get_final_response()).output_text == "B"
        assert first.store is False
    async with laned(api) as session:
        await session.default.send(create(input="3", previous_response_id=first.id))
        with pytest.raises(ResponsesWebSocketError):
            await session.default.get_final_response()


async def test_a_restart_is_told_and_the_client_comes_again(
    settings: Settings, fake: WatchedEngine
) -> None:
    codes: list[int] = []
    told = asyncio.Event()

    def on_reconnecting(event: ReconnectingEvent) -> None:
        codes.append(event.close_code)
        told.set()

    async with running_server(settings, fake) as running:
        url = running.url
        api = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        fake.will_say("A")
        connection = await api.responses.connect(
            on_reconnecting=on_reconnecting, initial_delay=0.01, max_delay=0.1, max_retries=100
        ).enter()
        await connection.response.create(model="mock", input="1")
        first = (await until_end(connection))[-1].response
        reading = asyncio.create_task(until_end(connection))
    async with asyncio.timeout(20):
        await told.wait()
    port = int(url.rpartition(":")[2])
    settings = replace(settings, server=replace(settings.server, server_port=port))
    again = WatchedEngine(settings.engine)
    again.will_say("B")
    async with running_server(settings, again), api:
        await connection.response.create(model="mock", input="2", previous_response_id=first.id)
        assert (await reading)[-1].response.output_text == "B"
        await connection.close()
    assert codes[0] == 1001


def test_the_client_that_is_not_async(settings: Settings) -> None:
    asyncio.run(_with_threads(settings))


async def _with_threads(settings: Settings) -> None:
    fake = WatchedEngine(settings.engine)
    fake.will_say("A").will_say("B").will_hang("Hel").will_say("good")
    async with running_server(settings, fake) as server:
        await asyncio.to_thread(_converse, server.url)


def _converse(url: str) -> None:
    with (
        OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as api,
        api.responses.connect() as connection,
        ResponsesWebSocketSession(connection, limits=LIMITS) as session,
    ):
        lane = session.lane("lane")
        lane.send(create(input="1"))
        first = lane.get_final_response(timeout=20)
        lane.send(create(input="2", previous_response_id=first.id))
        assert lane.get_final_response(timeout=20).output_text == "B"
        lane.send(create(input="3"))
        while (event := lane.recv(timeout=20)).type != "response.output_text.delta":
            if event.type == "response.created":
                id = event.response.id
        steer: Any = {"type": "response.steer", "previous_response_id": id, "input": "shorter"}
        lane.send(steer)
        assert lane.get_final_response(timeout=20).status == "incomplete"
        while lane.recv(timeout=20).type != "response.created":
            pass
        assert lane.get_final_response(timeout=20).output_text == "good"
