"""Who gets in where: every route of the table, at both doors, with every kind of key."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import orjson
import pytest
from aiohttp import ClientSession
from pytest_aiohttp import AiohttpClient

from lmserve.edge import reload
from lmserve.edge.key_file import digest_of, entry
from lmserve.errors import SetupError
from lmserve.server.app import build_app
from lmserve.server.lifecycle import Server, check, running_server
from lmserve.server.routes.route import Route
from lmserve.server.routes.table import TABLE
from lmserve.settings import AccessSettings, SessionSettings, Settings
from tests.server.sockets import PATH, connected

USE, METRICS, ADMIN = "sk-use", "sk-metrics", "sk-admin"
SCOPES = {USE: "use", METRICS: "metrics", ADMIN: "admin"}


def write_keys(path: Path, *keys: str) -> None:
    write(
        path,
        "\n".join(entry(SCOPES[key], digest_of(key), {"scopes": [SCOPES[key]]}) for key in keys),
    )


def write(path: Path, text: str) -> None:
    """Whole, or not at all."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.chmod(0o600)
    os.replace(new, path)


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload, "INTERVAL_S", 0.01)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    write_keys(path, *SCOPES)
    return path


@pytest.fixture
def settings(settings: Settings, key_file: Path, tmp_path: Path) -> Settings:
    return replace(
        settings,
        access=AccessSettings(key_file=str(key_file), admin_port=0),
        sessions=SessionSettings(data_dir=str(tmp_path / "data")),
    )


@pytest.fixture
async def both(server: Server) -> AsyncIterator[dict[str, ClientSession]]:
    """A client of each door."""
    assert server.admin_url is not None
    async with ClientSession(server.url) as own, ClientSession(server.admin_url) as admin:
        yield {"own": own, "admin": admin}


def path_of(route: Route) -> str:
    path = route.path.replace("{name}", "chat.js")
    return "/v1/models/none" if "{" in path else path


async def statuses(session: ClientSession, method: str, path: str) -> list[int]:
    """Without a key, with a wrong one, and with each of ours."""
    found = []
    for key in ("", "sk-wrong", USE, METRICS, ADMIN):
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        async with session.request(method, path, headers=headers, allow_redirects=False) as got:
            found.append(got.status)
    return found


def test_every_scope_is_in_the_table() -> None:
    """What the others are for is listed here: a new route for administrators is seen."""
    assert {(r.method, r.path, r.scope) for r in TABLE if r.scope != "use"} == {
        ("GET", "/metrics", "metrics"),
        ("POST", "/sleep", "admin"),
        ("POST", "/wakeup", "admin"),
        ("GET", "/is_sleeping", "admin"),
        ("GET", "/terminate", "admin"),
    }


async def test_every_route_at_both_doors(both: dict[str, ClientSession]) -> None:
    """403 is the scope's, 404 is not there; what a handler says to an empty body is no matter."""
    for route in TABLE:
        is_socket = route.path == PATH and route.method == "GET"
        for door, session in both.items():
            none, wrong, *known = await statuses(session, route.method, path_of(route))
            of_admin = route.scope != "use" or route.path == "/health"
            told = f"{route.method} {route.path} at {door}: {none} {wrong} {known}"
            if of_admin if door == "admin" else route.scope == "use":
                if route.open and not is_socket:
                    assert {none, wrong, *known} == {200}, told
                    continue
                assert (none, wrong) == (401, 401), told
                may = [SCOPES[key] in (route.scope, "admin") for key in SCOPES]
                assert [status != 403 for status in known] == may or route.acts, told
                if route.acts and not is_socket:  # it says that it is not enabled
                    assert known == [403, 403, 400] or known == [403, 403, 403], told
                assert not {401, 404, 500} & {s for s, m in zip(known, may, strict=True) if m} or (
                    "{" in route.path
                ), told
            else:
                assert (none, wrong) == (401, 401), told
                assert known == [404, 403, 404], told


TOLD = (204, 400, 403, 404, 405)  # 204: what methods there are
LINES = [
    "GET //metrics HTTP/1.1\r\nHost: x",
    "GET /%6detrics HTTP/1.1\r\nHost: x",
    "GET /metrics/ HTTP/1.1\r\nHost: x",
    "GET /METRICS HTTP/1.1\r\nHost: x",
    "GET /health/../metrics HTTP/1.1\r\nHost: x",
    "GET /health/%2e%2e/metrics HTTP/1.1\r\nHost: x",
    "GET /metrics?/health HTTP/1.1\r\nHost: x",
    "GET /metrics HTTP/1.1\r\nHost: /health?x=",
    "GET /metrics HTTP/1.1\r\nHost: a/?x=",
    "GET http://127.0.0.1/metrics HTTP/1.1\r\nHost: x",
    "GET http://evil.example/metrics HTTP/1.1\r\nHost: x",
    "HEAD /metrics HTTP/1.1\r\nHost: x",
    "POST //sleep HTTP/1.1\r\nHost: x",
    "POST /%73leep HTTP/1.1\r\nHost: x",
    "GET /sleep HTTP/1.1\r\nHost: x",
    "OPTIONS /sleep HTTP/1.1\r\nHost: x",
    "GET /terminate HTTP/1.0",
    "GET /nothing HTTP/1.1\r\nHost: x",
]


@pytest.mark.parametrize("key", ["", USE])
async def test_no_line_gets_around(server: Server, key: str) -> None:
    """At neither door does anybody but its own get more than a refusal."""
    for url in (server.url, server.admin_url):
        parts = urlsplit(url or "")
        for line in LINES:
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            bearer = f"\r\nAuthorization: Bearer {key}" if key else ""
            writer.write(f"{line}{bearer}\r\nConnection: close\r\n\r\n".encode())
            status = int((await reader.read()).split()[1])
            assert status in (TOLD if key else (400, 401)), (url, line, status)
            writer.close()


async def test_the_administrators_door(server: Server, both: dict[str, ClientSession]) -> None:
    headers = {"X-Api-Key": ADMIN}
    async with both["admin"].get("/metrics", headers=headers) as response:
        assert b"vllm:" in await response.read()
    async with both["admin"].post("/sleep", headers=headers) as response:
        assert response.status == 200
    async with both["admin"].get("/health") as response:
        assert (await response.json())["status"] == "sleeping"
    async with both["own"].get("/openapi.json", headers=headers) as response:
        assert "/metrics" not in (await response.json())["paths"]


def test_its_port_is_checked_before_anything_starts(settings: Settings) -> None:
    elsewhere = replace(settings.access, admin_name="192.0.2.1")
    with pytest.raises(SetupError, match="try --admin-name"):
        check(replace(settings, access=elsewhere))
    check(settings)
    without = replace(settings.access, admin_name="127.0.0.1", admin_port=None)
    with pytest.raises(SetupError, match=r"--admin-name 127\.0\.0\.1 .*: give --admin-port too"):
        check(replace(settings, access=without))
    none = replace(settings.access, key_file="/no/such/file")
    with pytest.raises(SetupError, match="no such file"):
        check(replace(settings, access=none))


async def test_a_damaged_file_keeps_a_server_from_starting(
    settings: Settings, key_file: Path, fake: Any
) -> None:
    write(key_file, "[a]\n")
    with pytest.raises(SetupError, match="line 1"):
        async with running_server(settings, fake):
            pass


# --- the file changes -------------------------------------------------------------------------


async def until(session: ClientSession, key: str, status: int) -> None:
    async with asyncio.timeout(30):
        while True:
            async with session.get("/v1/models", headers={"X-Api-Key": key}) as response:
                if response.status == status:
                    return
            await asyncio.sleep(0.01)


async def test_a_key_that_is_taken_away(
    server: Server, both: dict[str, ClientSession], key_file: Path
) -> None:
    """It opens nothing more, and the WebSocket that it opened is closed; others stay."""
    async with (
        ClientSession(server.url) as web,
        connected(web, headers={"X-Api-Key": USE}) as gone,
        connected(web, headers={"X-Api-Key": ADMIN}) as stays,
    ):
        write_keys(key_file, ADMIN)
        assert await gone.closed() == aiohttp.WSCloseCode.POLICY_VIOLATION
        await until(both["own"], USE, 401)
        await stays.call("session.list")
        write_keys(key_file, ADMIN, USE)
        await until(both["own"], USE, 200)


async def test_a_file_that_is_damaged_later_changes_nothing(
    server: Server,
    both: dict[str, ClientSession],
    key_file: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    write(key_file, "[a\n")
    async with asyncio.timeout(30):
        while "what was read before stays" not in caplog.text:
            await until(both["own"], USE, 200)
    await until(both["own"], "sk-wrong", 401)
    write_keys(key_file, ADMIN)
    await until(both["own"], USE, 401)


# --- who may use the WebSocket ----------------------------------------------------------------


async def test_a_key_for_metrics_opens_no_socket(server: Server) -> None:
    async with ClientSession(server.url) as web:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await web.ws_connect(PATH, headers={"X-Api-Key": METRICS})
        assert refused.value.status == 403
        async with web.ws_connect(PATH) as ws:
            await ws.send_json({"type": "session.authenticate", "api_key": METRICS})
            event = orjson.loads((await ws.receive(timeout=20)).data)
            assert (event["status"], event["error"]["code"]) == (403, "insufficient_scope")
            assert (await ws.receive(timeout=20)).data == aiohttp.WSCloseCode.POLICY_VIOLATION


# --- without keys: other pages, and other names -----------------------------------------------


@pytest.fixture
async def keyless(aiohttp_client: AiohttpClient, settings: Settings, fake: Any) -> Any:
    return await aiohttp_client(build_app(replace(settings, access=AccessSettings()), fake))


async def test_a_name_that_was_made_to_lead_here(keyless: Any) -> None:
    """The page's own requests: to its visitor's browser they are no other site's."""
    headers = {"Host": "evil.example:23333", "Sec-Fetch-Site": "same-origin"}
    for path in ("/v1/models", "/health", "/", "/nothing", PATH, "/metrics"):
        response = await keyless.get(path, headers=headers)
        code = (await response.json())["error"]["code"]
        assert (response.status, code) == (403, "host_not_allowed"), path
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await keyless.ws_connect(PATH, headers={**headers, "Origin": "http://evil.example:23333"})
    assert refused.value.status == 403


async def test_names_that_nobody_else_can_have(keyless: Any) -> None:
    for host in ("localhost", "127.0.0.1:1", "[::1]", "192.168.1.2", "mybox:80"):
        assert (await keyless.get("/v1/models", headers={"Host": host})).status == 200, host


async def test_names_that_are_allowed(
    aiohttp_client: AiohttpClient, settings: Settings, fake: Any
) -> None:
    access = AccessSettings(allowed_hosts=("chat.example",))
    client = await aiohttp_client(build_app(replace(settings, access=access), fake))
    assert (await client.get("/v1/models", headers={"Host": "chat.example"})).status == 200
    assert (await client.get("/v1/models", headers={"Host": "other.example"})).status == 403


async def test_no_other_page_acts(keyless: Any, fake: Any) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}]}
    for headers in (
        {"Origin": "http://evil.example"},  # over plain HTTP that is all that a browser tells
        {"Origin": "null"},
        {"Origin": "http://[bad"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site"},
    ):
        response = await keyless.post("/v1/chat/completions", json=body, headers=headers)
        code = (await response.json())["error"]["code"]
        assert (response.status, code) == (403, "cross_site"), headers
        assert (await keyless.post("/sleep", headers=headers)).status == 403
    assert fake.submits == []


async def test_our_own_page_acts(keyless: Any) -> None:
    """Behind a proxy with another name, too."""
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    own = str(keyless.make_url("")).rstrip("/")
    proxied = {"Origin": "https://chat.example", "X-Forwarded-Host": "chat.example"}
    for headers in ({"Origin": own}, proxied, {"Sec-Fetch-Site": "none"}):
        response = await keyless.post("/v1/chat/completions", json=body, headers=headers)
        assert response.status == 200


IMAGE = {"User-Agent": "Mozilla/5.0", "Accept": "image/avif,*/*"}


async def test_no_image_ends_the_server(
    aiohttp_client: AiohttpClient, settings: Settings, fake: Any
) -> None:
    server = replace(settings.server, allow_terminate_by_client=True)
    settings = replace(settings, server=server, access=AccessSettings())
    client = await aiohttp_client(build_app(settings, fake))
    for page in (
        {},  # with referrerpolicy="no-referrer"
        {"Referer": "http://evil.example/"},
        {"Sec-Fetch-Site": "cross-site"},
    ):
        response = await client.get("/terminate", headers=IMAGE | page)
        code = (await response.json())["error"]["code"]
        assert (response.status, code) == (403, "cross_site"), page
