"""What routes say of waiting: 429, 503 and 504, with when to come back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient
from pytest_aiohttp import AiohttpClient

from lmserve.server.app import build_app
from lmserve.server.keys import SERVICE
from lmserve.settings import EngineSettings, ServerSettings, Settings
from tests.server.conftest import WatchedEngine

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HELLO = {"messages": [{"role": "user", "content": "hi"}]}
PROMPT = {"prompt": "hi"}
ROUTES = [(CHAT, HELLO), (COMPLETIONS, PROMPT)]


async def error_of(response: ClientResponse) -> tuple[int, str, str | None]:
    error = (await response.json())["error"]
    return response.status, error["code"], error["param"]


@pytest.fixture
async def busy(client: TestClient, fake: WatchedEngine) -> AsyncIterator[ClientResponse]:
    """Runs one at a time, and runs one, which is streamed."""
    fake.will_queue(1).will_hang("Hel")
    response = await client.post(CHAT, json=HELLO | {"stream": True})
    yield response
    response.close()


@pytest.mark.parametrize(("url", "body"), ROUTES)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_deadline_in_the_queue_is_a_504(
    client: TestClient, busy: ClientResponse, url: str, body: dict[str, Any], stream: bool
) -> None:
    response = await client.post(url, json=body | {"deadline_s": 0.02, "stream": stream})
    assert await error_of(response) == (504, "deadline_exceeded", "deadline_s")
    assert int(response.headers["Retry-After"]) >= 1
    assert not busy.content.at_eof()  # the other goes on


async def test_a_deadline_in_mid_answer_ends_it(client: TestClient, fake: Any) -> None:
    fake.will_hang("Hel", "lo")
    response = await client.post(CHAT, json=HELLO | {"deadline_s": 0.1})
    (choice,) = (await response.json())["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Hello", "abort")


async def test_a_deadline_in_mid_stream_ends_it(client: TestClient, fake: Any) -> None:
    fake.will_hang("Hel", "lo")
    response = await client.post(CHAT, json=HELLO | {"deadline_s": 0.1, "stream": True})
    body = await response.read()
    assert b'"finish_reason":"abort"' in body
    assert body.endswith(b"data: [DONE]\n\n")


async def test_what_cannot_begin_in_time_is_refused_at_once(
    client: TestClient, busy: ClientResponse, fake: WatchedEngine
) -> None:
    service = client.app[SERVICE]
    service._waiting._interval.add(30.0)
    response = await client.post(CHAT, json=HELLO | {"deadline_s": 5})
    assert await error_of(response) == (504, "deadline_exceeded", "deadline_s")
    assert 20 <= int(response.headers["Retry-After"]) <= 30
    assert len(fake.submits) == 1


@pytest.mark.parametrize(("url", "body"), ROUTES)
async def test_the_priority_reaches_the_engine(
    client: TestClient, fake: Any, url: str, body: dict[str, Any]
) -> None:
    for priority in (None, 0, 7):
        fake.will_say("ok")
        assert (await client.post(url, json=body | {"priority": priority})).status == 200
    assert [submit.priority for submit in fake.submits] == [0, 0, 7]


@pytest.mark.parametrize(("url", "body"), ROUTES)
@pytest.mark.parametrize(
    ("field", "value"),
    [("priority", -1), ("priority", 101), ("deadline_s", 0), ("deadline_s", 90000)],
)
async def test_values_out_of_range(
    client: TestClient, url: str, body: dict[str, Any], field: str, value: float
) -> None:
    response = await client.post(url, json=body | {field: value})
    assert await error_of(response) == (400, "invalid_value", field)


async def test_a_full_server_says_when_to_come_back(aiohttp_client: AiohttpClient) -> None:
    settings = Settings(
        server=ServerSettings(server_port=0, model_name="mock", max_queued_requests=1),
        engine=EngineSettings(engine="mock"),
    )
    fake = WatchedEngine(settings.engine)
    client = await aiohttp_client(build_app(settings, fake))
    fake.will_hang("Hel")
    running = await client.post(CHAT, json=HELLO | {"stream": True})
    client.app[SERVICE]._waiting._interval.add(12.0)
    response = await client.post(CHAT, json=HELLO)
    assert await error_of(response) == (429, "overloaded", None)
    assert response.headers["Retry-After"] == "12"
    running.close()


async def test_an_engine_that_restarts_says_so(client: TestClient, fake: Any) -> None:
    fake.die()
    response = await client.post(CHAT, json=HELLO)
    assert await error_of(response) == (503, "engine_unavailable", None)
    assert response.headers["Retry-After"] == "5"


@pytest.mark.parametrize("stream", [False, True])
async def test_who_waited_in_vain_for_the_next_engine_comes_again(
    client: TestClient, fake: Any, stream: bool
) -> None:
    fake.will_hang()
    asking = asyncio.create_task(client.post(CHAT, json=HELLO | {"stream": stream}))
    while not fake._mailboxes:  # noqa: ASYNC110
        await asyncio.sleep(0)
    fake._set_state("restarting")
    fake.give_up()
    response = await asking
    assert await error_of(response) == (503, "engine_unavailable", None)
    assert response.headers["Retry-After"] == "5"


async def test_one_after_the_other(client: TestClient, fake: Any) -> None:
    fake.will_queue(1)
    for _ in range(4):
        fake.will_say("a", "b")
    answers = await asyncio.gather(*(client.post(CHAT, json=HELLO) for _ in range(4)))
    assert [answer.status for answer in answers] == [200] * 4
