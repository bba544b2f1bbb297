"""Who gets in at a distributor: scopes, a file of keys, other pages and other names."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from lmserve.distributor.auth import ADMINISTERED
from lmserve.edge import reload
from lmserve.edge.key_file import digest_of, entry
from lmserve.server.routes.table import TABLE
from tests.distributor.nodes import CHAT
from tests.server.sockets import PATH, connected

USE, METRICS, ADMIN = "sk-use", "sk-metrics", "sk-admin"
SCOPES = {USE: "use", METRICS: "metrics", ADMIN: "admin"}


def write_keys(path: Path, *keys: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(
        "\n".join(entry(SCOPES[key], digest_of(key), {"scopes": [SCOPES[key]]}) for key in keys)
    )
    new.chmod(0o600)
    os.replace(new, path)


@pytest.fixture
def key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(reload, "INTERVAL_S", 0.01)
    path = tmp_path / "keys.toml"
    write_keys(path, *SCOPES)
    return path


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


async def status_of(proxy: Any, method: str, path: str, headers: dict[str, str]) -> int:
    async with proxy.session.request(method, proxy.url + path, headers=headers) as response:
        await response.read()
        return int(response.status)


def test_what_administrators_of_servers_do_is_for_administrators_here() -> None:
    assert set(ADMINISTERED) == {route.path for route in TABLE if route.scope == "admin"}


async def test_every_route_and_every_key(make_node: Any, make_proxy: Any, key_file: Path) -> None:
    """The node itself asks for no key: what it may be made to do is decided here."""
    node = await make_node(allow_terminate_by_client=True)
    proxy = await make_proxy(node.url, key_file=str(key_file))
    own = {
        (route.method, route.resource.canonical)
        for route in proxy.app.router.routes()
        if route.method != "*"
    }
    admin = {(method, path) for method, path in own if path.startswith("/nodes/")}
    admin |= {(method, path) for path in ADMINISTERED for method in ("GET", "POST")}
    for method, path in sorted(own | admin | {("GET", "/version"), ("GET", "//metrics")}):
        if path in ("/health", PATH):
            continue
        needed = "metrics" if path == "/metrics" else "admin" if (method, path) in admin else "use"
        for key in ("", "sk-wrong"):
            assert await status_of(proxy, method, path, bearer(key)) == 401, (method, path)
        for key, scope in SCOPES.items():
            if key != ADMIN:  # it would do it
                refused = await status_of(proxy, method, path, bearer(key)) == 403
                assert refused is (scope != needed), (method, path, scope)
    assert await status_of(proxy, "GET", "/health", {}) == 200
    async with proxy.post("/sleep", headers=bearer(ADMIN)) as response:
        assert response.status == 200
    async with proxy.get("/nodes/status", headers=bearer(ADMIN)) as response:
        assert list(await response.json()) == [node.url]


async def test_plain_keys_are_no_administrators_where_there_are_some(make_proxy: Any) -> None:
    proxy = await make_proxy(api_keys=("sk-api",), admin_keys=("sk-boss",))
    assert await status_of(proxy, "GET", "/nodes/status", bearer("sk-api")) == 403
    assert await status_of(proxy, "GET", "/nodes/status", bearer("sk-boss")) == 200
    proxy = await make_proxy(api_keys=("sk-api",))
    assert await status_of(proxy, "GET", "/nodes/status", bearer("sk-api")) == 200


async def test_a_key_that_is_taken_away(make_node: Any, make_proxy: Any, key_file: Path) -> None:
    node = await make_node()
    proxy = await make_proxy(node.url, key_file=str(key_file))
    async with (
        connected(proxy.session, headers=bearer(USE)) as gone,
        connected(proxy.session, headers=bearer(ADMIN)) as stays,
    ):
        await gone.call("session.list")
        write_keys(key_file, ADMIN)
        assert await gone.closed() == aiohttp.WSCloseCode.POLICY_VIOLATION
        async with asyncio.timeout(30):
            while await status_of(proxy, "GET", "/v1/models", bearer(USE)) != 401:
                pass
        await stays.call("session.list")


IMAGE = {"User-Agent": "Mozilla/5.0", "Accept": "image/avif,*/*"}


async def test_no_image_and_no_page_ends_nodes(make_node: Any, make_proxy: Any) -> None:
    node = await make_node(allow_terminate_by_client=True)
    proxy = await make_proxy(node.url)
    for page in (
        IMAGE,  # with referrerpolicy="no-referrer", over plain HTTP
        IMAGE | {"Referer": "http://evil.example/"},
        IMAGE | {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "null"},
    ):
        for path in ("/nodes/terminate_all", "/terminate"):
            assert await status_of(proxy, "GET", path, page) == 403, (path, page)
        for path in ("/nodes/add", "/nodes/remove", "/nodes/terminate", "/sleep"):
            if page.get("User-Agent") is None:  # an image is only fetched
                assert await status_of(proxy, "POST", path, page) == 403, (path, page)
    assert proxy.known() == [node.url]
    assert await status_of(proxy, "GET", "/nodes/status", IMAGE) == 200  # looked at by hand


async def test_a_foreign_page_opens_no_socket(make_node: Any, make_proxy: Any) -> None:
    node = await make_node()
    proxy = await make_proxy(node.url)
    for origin in ("http://evil.example", "null"):
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await proxy.session.ws_connect(PATH, headers={"Origin": origin})
        assert refused.value.status == 403
    async with connected(proxy.session, headers={"Origin": proxy.url}) as socket:
        await socket.call("session.list")


async def test_a_name_that_was_made_to_lead_here(make_node: Any, make_proxy: Any) -> None:
    node = await make_node()
    proxy = await make_proxy(node.url)
    named = {"Host": "evil.example:8000", "Sec-Fetch-Site": "same-origin"}
    for path in ("/nodes/status", "/v1/models", "/health", "/chat"):
        assert await status_of(proxy, "GET", path, named) == 403, path
    allowed = await make_proxy(node.url, allowed_hosts=("evil.example",))
    async with allowed.post("/v1/chat/completions", json=CHAT, headers=named) as response:
        assert response.status == 200


async def test_a_page_of_the_distributors_own_reaches_its_node(
    make_node: Any, make_proxy: Any
) -> None:
    """The node sees another Host, and the name by which the distributor was called."""
    node = await make_node()
    proxy = await make_proxy(node.url)
    async with proxy.post(
        "/v1/chat/completions", json=CHAT, headers={"Origin": proxy.url}
    ) as response:
        assert response.status == 200
    assert (
        await status_of(proxy, "POST", "/v1/completions", {"Origin": "http://evil.example"}) == 403
    )
