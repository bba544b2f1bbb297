"""/asyncapi.json says what is sent and what is taken."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from aiohttp.test_utils import TestClient

from lmserve.protocol.responses.events import RESPONSE_EVENTS, event_name
from lmserve.server.socket.connection import EVENTS
from lmserve.settings import SessionSettings, Settings
from tests.server.sockets import connected


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    return replace(settings, sessions=SessionSettings(data_dir=str(tmp_path)))


@pytest.fixture
async def document(client: TestClient) -> Any:
    return await (await client.get("/asyncapi.json")).json()


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def test_every_reference_is_there(document: Any) -> None:
    assert document["asyncapi"] == "3.0.0"
    for reference in set(references(document)):
        found = document
        for name in reference.removeprefix("#/").split("/"):
            found = found[name]


def test_every_event_is_there(document: Any) -> None:
    taken, sent = (
        {each["$ref"].rpartition("/")[2] for each in document["operations"][name]["messages"]}
        for name in ("receive", "send")
    )
    assert taken == set(EVENTS)
    assert {event_name(event) for event in RESPONSE_EVENTS} < sent
    calls = {name for name in EVENTS if name.startswith("session.")} - {"session.authenticate"}
    assert {f"{name}.done" for name in calls} < sent
    for name in taken | sent:
        message = document["components"]["messages"][name]
        assert message["name"] == name and message["summary"], name
        jsonschema.Draft202012Validator.check_schema(message["payload"])
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


async def test_what_is_sent_is_as_it_says(document: Any, client: TestClient, fake: Any) -> None:
    fake.will_say("Hello").will_hang("Hel").will_say("good")
    async with connected(client) as socket:
        events = []
        for type, fields in (
            ("session.create", {"id": "a", "event_id": "e"}),
            ("session.get", {"session": "a"}),
            ("session.list", {}),
            ("session.messages", {"session": "a"}),
            ("session.export", {"session": "a"}),
            ("session.cancel", {"session": "a"}),
            ("session.authenticate", {"api_key": "none"}),
            ("no.such", {}),
        ):
            await socket.send(type, **fields)
            events.append(await socket.receive())
        await socket.send("response.create", input="hi", stream_id="lane", conversation="a")
        events += await socket.until("response.completed")
        await socket.send("session.resume", response_id=events[-1]["response"]["id"])
        events += await socket.until("response.completed")
        await socket.send("response.create", input="hi")
        begun = await socket.until("response.output_text.delta")
        id = begun[0]["response"]["id"]
        await socket.send("session.update", response_id=id, temperature=0)
        events += await socket.until("session.update.done")
        await socket.send("response.steer", previous_response_id=id, input="shorter")
        events += await socket.until("response.completed")
        await socket.send("response.steer", previous_response_id=id, input="late")
        events += [*begun, await socket.receive()]
    seen = set()
    for event in events:
        payload = document["components"]["messages"][event["type"]]["payload"]
        jsonschema.validate(event, {**payload, "components": document["components"]})
        seen.add(event["type"])
    assert len(seen) > 20, seen
