"""Who may open a WebSocket, and how it is said."""

from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestClient

from lmserve.edge.socket import authentication
from lmserve.settings import SessionSettings, Settings
from tests.server.sockets import PATH, Socket, connected

KEY, OTHER = "sk-one", "sk-two"
POLICY = aiohttp.WSCloseCode.POLICY_VIOLATION


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    server = replace(
        settings.server, api_keys=(KEY, OTHER), allow_origins=("https://page.example",)
    )
    return replace(settings, server=server, sessions=SessionSettings(data_dir=str(tmp_path)))


def named(key: str) -> str:
    return "lmserve.key." + base64.urlsafe_b64encode(key.encode()).rstrip(b"=").decode()


@pytest.mark.parametrize(
    "headers", [{"Authorization": f"Bearer {KEY}"}, {"X-Api-Key": KEY}], ids=["bearer", "x-api-key"]
)
async def test_a_key_in_a_header(client: TestClient, headers: dict[str, str]) -> None:
    async with connected(client, headers=headers) as socket:
        await socket.call("session.list")
        await socket.send("session.authenticate", api_key="whatever", event_id="e")
        assert await socket.receive() == {"type": "session.authenticated", "event_id": "e"}


async def test_a_wrong_key_in_a_header(client: TestClient) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await client.ws_connect(PATH, headers={"X-Api-Key": "wrong"})
    assert refused.value.status == 401


async def test_a_key_in_a_subprotocol(client: TestClient) -> None:
    async with connected(client, protocols=("lmserve", named(KEY))) as socket:
        assert socket.ws.protocol == "lmserve"
        await socket.call("session.create", id="mine")


@pytest.mark.parametrize("protocol", [named("wrong"), "lmserve.key.!", "lmserve.key."])
async def test_a_wrong_key_in_a_subprotocol(client: TestClient, protocol: str) -> None:
    async with client.ws_connect(PATH, protocols=("lmserve", protocol)) as ws:
        socket = Socket(ws)
        event = await socket.receive()
        assert (event["type"], event["status"]) == ("error", 401)
        assert "wrong" not in event["error"]["message"]
        assert await socket.closed() == POLICY


async def test_subprotocols_without_ours(client: TestClient, caplog: Any) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await client.ws_connect(PATH, protocols=(named(KEY),))
    assert refused.value.status == 400
    assert named(KEY) not in caplog.text


async def test_a_key_in_the_first_event(client: TestClient) -> None:
    async with connected(client) as socket:
        await socket.send("session.authenticate", api_key=KEY, event_id="e")
        assert await socket.receive() == {"type": "session.authenticated", "event_id": "e"}
        await socket.call("session.list")


@pytest.mark.parametrize(
    "event",
    [
        {"type": "session.create", "id": "early"},
        {"type": "session.authenticate", "api_key": "wrong"},
        {"type": "session.authenticate"},
        {"type": "session.authenticate", "api_key": 7},
        {},
    ],
)
async def test_nothing_is_done_before_the_key(client: TestClient, event: dict[str, Any]) -> None:
    async with client.ws_connect(PATH) as ws:
        socket = Socket(ws)
        await ws.send_json(event)
        await ws.send_json({"type": "session.create", "id": "early"})
        error = await socket.receive()
        assert error["type"] == "error" and error["status"] in (400, 401)
        assert await socket.closed() == POLICY
    async with connected(client, headers={"X-Api-Key": KEY}) as socket:
        assert (await socket.call("session.list"))["data"] == []


async def test_a_binary_frame_before_the_key(client: TestClient) -> None:
    async with client.ws_connect(PATH) as ws:
        await ws.send_bytes(b"\0")
        assert (await Socket(ws).receive())["status"] == 401
        assert await Socket(ws).closed() == POLICY


async def test_no_key_in_time(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authentication, "PATIENCE_S", 0.05)
    async with client.ws_connect(PATH) as ws:
        socket = Socket(ws)
        assert "session.authenticate" in (await socket.receive())["error"]["message"]
        assert await socket.closed() == POLICY


async def test_a_key_in_the_query_is_no_key(client: TestClient) -> None:
    async with client.ws_connect(f"{PATH}?api_key={KEY}&key={KEY}&token={KEY}") as ws:
        socket = Socket(ws)
        await socket.send("session.list")
        assert (await socket.receive())["status"] == 401
        assert await socket.closed() == POLICY


async def test_someone_elses_session_is_none(client: TestClient) -> None:
    async with (
        connected(client, headers={"X-Api-Key": KEY}) as one,
        connected(client, headers={"X-Api-Key": OTHER}) as two,
    ):
        await one.call("session.create", id="mine")
        for type in ("session.get", "session.messages", "session.export", "session.cancel",
                     "session.delete", "session.fork"):  # fmt: skip
            error = await two.error(type, session="mine")
            assert (error["status"], error["error"]["code"]) == (404, "session_not_found"), type
        assert (await two.call("session.list"))["data"] == []
        await one.call("session.get", session="mine")


# --- other web pages --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://[bad"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
async def test_another_page_may_not_connect(client: TestClient, headers: dict[str, str]) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await client.ws_connect(PATH, headers=headers | {"X-Api-Key": KEY})
    assert refused.value.status == 403


async def test_allowed_pages_and_our_own_may(client: TestClient) -> None:
    own = str(client.make_url("/")).rstrip("/")
    for origin in ("https://page.example", own):
        headers = {"Origin": origin, "X-Api-Key": KEY}
        async with connected(client, headers=headers) as socket:
            await socket.call("session.list")


async def test_no_upgrade(client: TestClient) -> None:
    assert (await client.get(PATH)).status == 401
    response = await client.get(PATH, headers={"X-Api-Key": KEY})
    assert response.status == 400
    assert "WebSocket" in (await response.json())["error"]["message"]
