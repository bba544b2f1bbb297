"""Calls from other web pages: closed, opened, with keys, on errors and on streams."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp.test_utils import TestClient
from pytest_aiohttp import AiohttpClient

from lmserve.errors import SetupError
from lmserve.server.app import build_app
from lmserve.server.cors import Cors
from lmserve.settings import ServerSettings, Settings

CHAT = "/v1/chat/completions"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
PAGE = "https://page.example"
ASKS = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type",
}

Open = Callable[..., Any]


@pytest.fixture
def opened(aiohttp_client: AiohttpClient, settings: Settings, fake: Any) -> Open:
    """A client of a server with these settings."""

    async def opened(**server: Any) -> TestClient:
        changed = dataclasses.replace(settings.server, **server)
        return await aiohttp_client(build_app(dataclasses.replace(settings, server=changed), fake))

    return opened


def marks(response: Any) -> dict[str, str]:
    """The headers of CORS, by what comes after `Access-Control-`."""
    prefix = "Access-Control-"
    return {
        name.removeprefix(prefix): value
        for name, value in response.headers.items()
        if name.startswith(prefix)
    }


async def test_closed_unless_opened(opened: Open) -> None:
    client = await opened()
    for response in (
        await client.get("/v1/models", headers={"Origin": PAGE}),
        await client.options(CHAT, headers={"Origin": PAGE} | ASKS),
        await client.get("/nothing", headers={"Origin": PAGE}),
    ):
        assert marks(response) == {}
        assert "Vary" not in response.headers


async def test_a_preflight_needs_no_key_and_says_what_may_be_sent(opened: Open) -> None:
    client = await opened(allow_origins=(PAGE,), api_keys=("sk-1",))
    response = await client.options(CHAT, headers={"Origin": PAGE} | ASKS)
    assert (response.status, await response.read()) == (204, b"")
    told = marks(response)
    assert told["Allow-Origin"] == PAGE
    assert told["Allow-Methods"] == "POST"
    assert told["Allow-Headers"] == "authorization,content-type"
    assert "Allow-Credentials" not in told
    assert "Origin" in ", ".join(response.headers.getall("Vary"))
    assert (await client.options(CHAT, headers={"Origin": PAGE})).status == 401  # no preflight


@pytest.mark.parametrize("stream", [False, True])
async def test_real_answers_say_who_may_read_them(opened: Open, stream: bool) -> None:
    client = await opened(allow_origins=(PAGE, "http://localhost:3000/"))
    for origin in (PAGE, "http://localhost:3000"):
        headers = {"Origin": origin}
        response = await client.post(CHAT, json=HELLO | {"stream": stream}, headers=headers)
        assert response.status == 200
        assert marks(response)["Allow-Origin"] == origin
        assert "X-Request-Id" in marks(response)["Expose-Headers"]
        assert response.headers.getall("Vary") == ["Origin"]


async def test_errors_can_be_read_too(opened: Open) -> None:
    client = await opened(allow_origins=(PAGE,), api_keys=("sk-1",))
    denied = await client.get("/v1/models", headers={"Origin": PAGE})
    assert (denied.status, marks(denied)["Allow-Origin"]) == (401, PAGE)
    for method, path, status in (("GET", "/nothing", 404), ("GET", CHAT, 405), ("POST", CHAT, 400)):
        headers = {"Origin": PAGE, "X-Api-Key": "sk-1"}
        response = await client.request(method, path, headers=headers)
        assert (response.status, marks(response)["Allow-Origin"]) == (status, PAGE)


@pytest.mark.parametrize(
    "origin",
    [
        "https://other.example",
        "http://page.example",
        "https://page.example:8443",
        "https://page.example.evil.example",
        "https://evilpage.example",
        "null",
        "",
    ],
)
async def test_other_origins_get_no_header(opened: Open, origin: str) -> None:
    client = await opened(allow_origins=(PAGE,))
    response = await client.get("/v1/models", headers={"Origin": origin})
    assert (response.status, marks(response)) == (200, {})
    assert response.headers["Vary"] == "Origin"  # so that no cache gives it to another
    assert marks(await client.options(CHAT, headers={"Origin": origin} | ASKS)) == {}


async def test_any_origin(opened: Open) -> None:
    client = await opened(allow_origins=("*",))
    response = await client.get("/v1/models", headers={"Origin": PAGE})
    assert marks(response)["Allow-Origin"] == "*"
    assert "Vary" not in response.headers
    assert marks(await client.get("/v1/models")) == {}


async def test_credentials(opened: Open) -> None:
    client = await opened(allow_origins=(PAGE,), allow_credentials=True)
    told = marks(await client.options(CHAT, headers={"Origin": PAGE} | ASKS))
    assert told["Allow-Credentials"] == "true"
    assert "*" not in "".join(told.values())  # it would mean nothing there
    real = marks(await client.get("/v1/models", headers={"Origin": PAGE}))
    assert (real["Allow-Origin"], real["Allow-Credentials"]) == (PAGE, "true")


async def test_methods_and_headers_that_are_named(opened: Open) -> None:
    client = await opened(
        allow_origins=(PAGE,), allow_methods=("GET",), allow_headers=("X-One", "X-Two")
    )
    told = marks(await client.options(CHAT, headers={"Origin": PAGE} | ASKS))
    assert told["Allow-Methods"] == "GET"  # not what was asked for: the browser refuses it
    assert told["Allow-Headers"].endswith("Content-Type, X-One, X-Two")
    assert "authorization" not in told["Allow-Headers"].lower()


@pytest.mark.parametrize("asked", ["", "a b", "x: y", "<script>", "x,,y"])
async def test_only_names_of_headers_are_repeated(opened: Open, asked: str) -> None:
    client = await opened(allow_origins=("*",))
    headers = {"Origin": PAGE} | ASKS | {"Access-Control-Request-Headers": asked}
    response = await client.options(CHAT, headers=headers)
    assert response.status == 204
    assert "Allow-Headers" not in marks(response)


@pytest.mark.parametrize(
    "origin", ["page.example", "https://*.example", "https://page.example/path", "localhost:80"]
)
def test_what_is_no_origin_is_refused(origin: str) -> None:
    with pytest.raises(SetupError, match=r"--allow-origins .*http://host:port") as caught:
        Cors(ServerSettings(allow_origins=(origin,)))
    assert "\n" not in caught.value.message


def test_any_origin_with_credentials_is_refused() -> None:
    with pytest.raises(SetupError, match="name the origins"):
        Cors(ServerSettings(allow_origins=("*",), allow_credentials=True))


@pytest.mark.parametrize(
    ("origins", "headers", "status"),
    [
        ((), {"Sec-Fetch-Site": "cross-site", "Origin": PAGE}, 403),
        (("https://other.example",), {"Sec-Fetch-Site": "cross-site", "Origin": PAGE}, 403),
        ((PAGE,), {"Sec-Fetch-Site": "cross-site", "Origin": PAGE}, 200),
        (("*",), {"Sec-Fetch-Site": "cross-site", "Origin": PAGE}, 200),
        ((), {"Sec-Fetch-Site": "same-origin"}, 200),
    ],
)
async def test_no_other_page_acts_unless_opened(
    opened: Open, origins: tuple[str, ...], headers: dict[str, str], status: int
) -> None:
    client = await opened(allow_origins=origins)
    response = await client.post(CHAT, json=HELLO, headers=headers)
    assert response.status == status
    if status == 403:
        error = (await response.json())["error"]
        assert error["code"] == "cross_site"
        assert "--allow-origins" in error["message"]


async def test_links_from_other_pages(opened: Open) -> None:
    """They lead to pages, and end no server: an image's address is asked for without an origin."""
    client = await opened(allow_origins=("*",))
    crossing = {"Sec-Fetch-Site": "cross-site"}
    assert (await client.get("/", headers=crossing)).status == 200
    assert (await client.get("/terminate", headers=crossing)).status == 403
