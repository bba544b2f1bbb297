"""Registration with a distributor, which is a small real server here."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer

from lmserve.bridge.fake import FakeEngine
from lmserve.errors import SetupError
from lmserve.server import registration
from lmserve.server.lifecycle import check, running_server
from lmserve.settings import ServerSettings, Settings

CHAT = "/v1/chat/completions"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}


class Distributor:
    """Writes down what nodes say."""

    def __init__(self) -> None:
        self.said: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue()
        self.keys: set[str | None] = set()
        self.status = 200
        self.app = web.Application()
        self.app.router.add_post("/nodes/{verb}", self.hear)

    async def hear(self, request: web.Request) -> web.Response:
        self.keys.add(request.headers.get("Authorization"))
        self.said.put_nowait((request.match_info["verb"], await request.json()))
        return web.json_response("Added successfully", status=self.status)

    async def hears(self, verb: str) -> dict[str, Any]:
        """The next of these words; heart-beats before it are passed over."""
        while True:
            said, body = await self.said.get()
            if said == verb:
                return body
            assert said == "add"


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registration, "BEAT_S", 0.02)
    monkeypatch.setattr(registration, "RETRY_S", 0.01)
    monkeypatch.setattr(registration, "MAX_RETRY_S", 0.02)


@pytest.fixture
def distributor() -> Distributor:
    return Distributor()


@pytest.fixture
async def proxy_url(distributor: Distributor) -> AsyncIterator[str]:
    async with TestServer(distributor.app) as server:
        yield str(server.make_url(""))


def with_proxy(settings: Settings, proxy_url: str, **server: Any) -> Settings:
    changed = dataclasses.replace(settings.server, proxy_url=proxy_url, **server)
    return dataclasses.replace(settings, server=changed)


async def test_added_with_a_heart_beat_and_removed_first_of_all(
    settings: Settings, fake: Any, distributor: Distributor, proxy_url: str
) -> None:
    async with running_server(with_proxy(settings, proxy_url), fake) as server:
        told = await distributor.hears("add")
        assert told == {
            "url": server.url,
            "status": {"models": ["mock"], "unfinished": 0, "latency": [], "speed": None},
        }
        assert await distributor.hears("add") == told
    assert await distributor.hears("remove") == {"url": server.url}
    assert distributor.said.empty()
    assert distributor.keys == {None}


async def test_removed_while_answers_still_run(
    settings: Settings, fake: Any, distributor: Distributor, proxy_url: str
) -> None:
    fake.will_hang("Once")
    settings = with_proxy(settings, proxy_url, drain_timeout_s=30.0)
    server = running_server(settings, fake)
    running = await server.__aenter__()
    async with ClientSession(running.url) as session:
        async with session.post(CHAT, json=HELLO | {"stream": True, "max_tokens": 9}) as response:
            await response.content.readuntil(b"Once")
            ending = asyncio.create_task(server.__aexit__(None, None, None))
            await distributor.hears("remove")
            assert running.service.inflight == 1
            fake.die()  # ends what the drain waits for
            await response.read()
            await ending


async def test_keys_and_the_url_to_advertise(
    settings: Settings, fake: Any, distributor: Distributor, proxy_url: str
) -> None:
    settings = with_proxy(
        settings, proxy_url + "/", advertise_url="http://10.0.0.7:80/", api_keys=("sk-1", "sk-2")
    )
    async with running_server(settings, fake):
        assert (await distributor.hears("add"))["url"] == "http://10.0.0.7:80"
    assert (await distributor.hears("remove"))["url"] == "http://10.0.0.7:80"
    assert distributor.keys == {"Bearer sk-1"}


async def test_what_is_not_ready_is_not_in_the_list(
    settings: Settings, distributor: Distributor, proxy_url: str
) -> None:
    class Loading(FakeEngine):
        async def start(self) -> None:
            await super().start()
            self.die()

    fake = Loading(settings.engine)
    async with running_server(with_proxy(settings, proxy_url), fake) as server:
        async with ClientSession(server.url) as session:  # it listens, and a while has passed
            for _ in range(5):
                assert (await session.get("/health")).status == 503
        assert distributor.said.empty()
        fake.resume()
        await distributor.hears("add")
        fake.hang()
        await distributor.hears("remove")
        fake.resume()
        await distributor.hears("add")
        await fake.sleep()
        await distributor.hears("remove")


async def test_a_distributor_that_comes_late(
    settings: Settings, fake: Any, distributor: Distributor, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = with_proxy(settings, f"http://127.0.0.1:{port}")
    with caplog.at_level(logging.INFO, "lmserve.server.registration"):
        async with running_server(settings, fake) as server:
            async with ClientSession(server.url) as session:
                while not caplog.records:
                    assert (await session.post(CHAT, json=HELLO)).status == 200  # it serves
            async with TestServer(distributor.app, port=port):
                await distributor.hears("add")
                distributor.status = 500
                while len(caplog.records) < 3:
                    await distributor.hears("add")
                distributor.status = 200
                while len(caplog.records) < 4:
                    await distributor.hears("add")
    lines = caplog.messages[:4]  # and no more: one a change, however many beats
    assert ["cannot be registered" in line for line in lines] == [True, False, True, False]
    assert not any("\n" in line for line in lines)


@pytest.mark.parametrize(("status", "told"), [(401, "--api-keys"), (500, "500"), (307, "307")])
async def test_a_distributor_that_refuses_is_told_once_in_the_log(
    settings: Settings,
    fake: Any,
    distributor: Distributor,
    proxy_url: str,
    caplog: pytest.LogCaptureFixture,
    status: int,
    told: str,
) -> None:
    distributor.status = status
    settings = with_proxy(settings, proxy_url, api_keys=("sk-secret",))
    with caplog.at_level(logging.INFO, "lmserve.server.registration"):
        async with running_server(settings, fake):
            for _ in range(3):
                await distributor.hears("add")
            [line] = [record.getMessage() for record in caplog.records]
    assert told in line
    assert "sk-secret" not in caplog.text


async def test_one_that_never_answers_holds_nothing_up(
    settings: Settings, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registration, "LEAVE_TIMEOUT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = with_proxy(settings, f"http://127.0.0.1:{silent.getsockname()[1]}")
        async with running_server(settings, fake) as server:
            async with ClientSession(server.url) as session:
                assert (await session.post(CHAT, json=HELLO)).status == 200


@pytest.mark.parametrize("name", ["0.0.0.0", "::", "0"])
def test_a_wildcard_address_is_refused_with_the_remedy(name: str) -> None:
    if ":" in name and not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    settings = ServerSettings(server_name=name, server_port=0, proxy_url="http://127.0.0.1:1")
    with pytest.raises(SetupError, match="--advertise-url http://<this machine>:") as caught:
        check(Settings(server=settings))
    assert "\n" not in caught.value.message
    check(Settings(server=dataclasses.replace(settings, advertise_url="http://10.0.0.7:23333")))
    check(Settings(server=dataclasses.replace(settings, proxy_url=None)))
    for url in (f"http://[{name}]:1" if ":" in name else "http://0.0.0.0:1", "http://[1"):
        with pytest.raises(SetupError, match="--advertise-url"):
            check(Settings(server=dataclasses.replace(settings, advertise_url=url)))


async def test_an_address_only_this_machine_reaches_is_warned_of(
    settings: Settings, fake: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_server(with_proxy(settings, "http://proxy.invalid:1"), fake) as server:
        async with ClientSession(server.url) as session:
            while not any("--advertise-url" in line for line in caplog.messages):
                await session.get("/health")
