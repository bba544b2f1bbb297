"""What comes over the WebSocket and is no event, or too much: one clear error, and it goes on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.http_websocket import WebSocketWriter
from aiohttp.test_utils import TestClient
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from lmserve.server.keys import METRICS
from lmserve.server.lifecycle import Server
from lmserve.server.socket.connection import EVENTS
from lmserve.settings import SessionSettings, Settings
from tests.server.sockets import PATH, Socket, connected


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    server = replace(settings.server, max_body_bytes=20_000, write_timeout_s=0.5)
    return replace(settings, server=server, sessions=SessionSettings(data_dir=str(tmp_path)))


@pytest.fixture
async def socket(client: TestClient) -> AsyncIterator[Socket]:
    async with connected(client) as socket:
        yield socket


@pytest.mark.parametrize(
    ("text", "param"),
    [
        ("", None),
        ("{", None),
        ("hello", None),
        ("[]", None),
        ("null", None),
        ('"response.create"', None),
        ('{"type": NaN}', None),
        ("{}", "type"),
        ('{"type": null}', "type"),
        ('{"type": 7}', "type"),
        ('{"type": "no.such"}', "type"),
        ('{"type": "session.list", "type": "session.list"}', "type"),
        ('{"type": "session.list", "event_id": 7}', "event_id"),
        ('{"type": "session.list", "stream_id": "a b"}', "stream_id"),
        ('{"type": "session.list", "stream_id": ""}', "stream_id"),
        ('{"type": "session.list", "stream_id": "' + "x" * 257 + '"}', "stream_id"),
        ('{"type": "session.list", "limit": "many"}', "limit"),
        ('{"type": "session.list", "limit": 1e400}', None),
        ('{"type": "response.create", "input": 7}', "input"),
        ('{"type": "response.create"}', "input"),
        ('{"type": "response.create", "input": "hi", "background": true}', "background"),
        ('{"type": "session.resume"}', "response_id"),
        ('{"type": "session.resume", "response_id": "x", "starting_after": "1"}',
         "starting_after"),
    ],
)  # fmt: skip
async def test_no_event(socket: Socket, text: str, param: str | None) -> None:
    await socket.raw(text)
    event = await socket.receive()
    assert (event["type"], event["status"]) == ("error", 400)
    assert event["error"]["param"] == param and event["error"]["message"]
    assert event["error"]["type"] == "invalid_request_error"
    assert (await socket.call("session.list"))["data"] == []


async def test_bytes_that_are_no_text(socket: Socket) -> None:
    await socket.ws.send_bytes(b'{"type": "session.list"}')
    event = await socket.receive()
    assert (event["type"], event["status"]) == ("error", 400) and "text" in event["error"][
        "message"
    ]
    await socket.ws.send_frame(b'{"type": "\xff"}', aiohttp.WSMsgType.TEXT)
    assert (await socket.receive())["status"] == 400
    await socket.call("session.list")


async def test_an_error_names_event_and_lane(socket: Socket) -> None:
    event = await socket.error("no.such", event_id="e", stream_id="lane")
    assert (event["event_id"], event["stream_id"]) == ("e", "lane")
    assert "session.list" in event["error"]["message"]


async def test_fragments_make_one_event(socket: Socket) -> None:
    writer: WebSocketWriter = socket.ws._writer
    assert writer.transport is not None
    for first, part in ((0x01, b'{"type": "sess'), (0x00, b"ion.li"), (0x80, b'st"}')):
        mask = bytes(4)
        writer.transport.write(bytes((first, 0x80 | len(part))) + mask + part)
    assert (await socket.receive())["type"] == "session.list.done"


async def test_an_event_over_the_limit(client: TestClient) -> None:
    async with connected(client) as socket, connected(client) as other:
        await socket.send("session.create", title="x" * 30_000)
        assert await socket.closed() == aiohttp.WSCloseCode.MESSAGE_TOO_BIG
        assert (await other.call("session.list"))["data"] == []


async def test_an_oversized_event_in_fragments(client: TestClient) -> None:
    async with connected(client) as socket:
        transport = socket.ws._writer.transport
        part = b"x" * 10_000
        head = b"\xfe" + len(part).to_bytes(2, "big") + bytes(4)
        for first in (b"\x01", b"\x00", b"\x00"):
            transport.write(first + head + part)
        assert await socket.closed() == aiohttp.WSCloseCode.MESSAGE_TOO_BIG


async def test_a_flood_of_events_lets_others_have_their_turn(client: TestClient) -> None:
    assert client.app is not None
    told = client.app[METRICS].socket_events
    async with connected(client) as socket:
        event = b'{"type":"no.such"}'
        frame = bytes((0x81, 0x80 | len(event))) + bytes(4) + event
        socket.ws._writer.transport.write(frame * 3000)
        await socket.receive()
        assert told["other"] < 1000


async def test_a_bad_frame_ends_its_own_connection(client: TestClient) -> None:
    async with connected(client) as socket, connected(client) as other:
        socket.ws._writer.transport.write(b"\xff\x80\0\0\0\0")
        assert await socket.closed() == aiohttp.WSCloseCode.PROTOCOL_ERROR
        await other.call("session.list")


async def test_unknown_fields_are_counted_not_refused(client: TestClient, socket: Socket) -> None:
    await socket.call("session.list", sparkle=True)
    metrics = await (await client.get("/metrics")).text()
    assert 'lmserve:unknown_fields_total{field="sparkle"' in metrics
    assert 'lmserve:websocket_events_total{model_name="mock",type="session.list"} 1.0' in metrics
    assert 'lmserve:websockets{model_name="mock"} 1.0' in metrics


async def test_a_peer_that_never_reads_is_dropped(server: Server) -> None:
    async with aiohttp.ClientSession(server.url) as web, connected(web) as other:
        messages = [{"role": "user", "content": "x" * 15_000}]
        await other.call("session.create", id="a", messages=messages)
        async with web.ws_connect(PATH) as ws:
            deaf = Socket(ws)
            ws._response.connection.transport.pause_reading()
            with pytest.raises((ConnectionError, aiohttp.ClientError)):
                for _ in range(100_000):
                    await deaf.send("session.messages", session="a")
                    await asyncio.sleep(0)
            assert (await other.call("session.get", session="a"))["num_messages"] == 1


# --- anything at all --------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner,
                                                                 max_size=2),
    max_leaves=5,
)  # fmt: skip
FIELDS = ("session", "event_id", "stream_id", "response_id", "previous_response_id", "input",
          "messages", "limit", "after", "to", "id", "starting_after", "model", "title", "stop",
          "temperature", "conversation", "instructions", "at", "tree", "text")  # fmt: skip
EVENT = st.fixed_dictionaries(
    {"type": st.sampled_from(sorted(EVENTS)) | st.text(max_size=8)},
    optional=dict.fromkeys(FIELDS, JSON),
)
FRAME: Any = EVENT.map(lambda event: json.dumps(event).encode()) | st.binary(max_size=40)


@hypothesis_settings(
    max_examples=hypothesis_settings.default.max_examples // 3,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(frames=st.lists(FRAME, max_size=8))
async def test_anything_leaves_the_connection_in_order(
    client: TestClient, frames: list[bytes]
) -> None:
    async with connected(client) as socket:
        for frame in frames:
            await socket.ws.send_frame(frame, aiohttp.WSMsgType.TEXT)
        await socket.send("session.list", event_id="the end of it")
        while (event := await socket.receive()).get("event_id") != "the end of it":
            assert isinstance(event["type"], str)
            assert event.get("status") != 500, event
        assert event["type"] == "session.list.done"
