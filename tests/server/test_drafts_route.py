from __future__ import annotations

import asyncio
from typing import Any

from aiohttp.test_utils import TestClient
from pytest_aiohttp import AiohttpClient

from lmserve.server.app import build_app
from lmserve.settings import EngineSettings, ServerSettings, Settings, WarmSettings
from tests.server.conftest import WatchedEngine
from tests.server.talk import HELLO, HI, Talk, begin


async def talking(client: TestClient[Any, Any]) -> Talk:
    return await begin(client, messages=[HI, HELLO])


async def ready(talk: Talk, **change: Any) -> Any:
    draft = await talk.post("/draft", change)
    async with asyncio.timeout(10):
        while draft["state"] != "ready":
            await asyncio.sleep(0.001)
            draft = await talk.post("/draft", {"append": "", "after": change.get("after")})
    return draft


async def test_what_is_typed_is_run_ahead(
    client: TestClient[Any, Any], fake: WatchedEngine
) -> None:
    talk = await talking(client)
    draft = await talk.post("/draft", {"text": "what is the tim"})
    assert draft.keys() == {
        "object", "session", "num_chars", "num_tokens", "cached_tokens", "state"
    }  # fmt: skip
    assert (draft["object"], draft["session"]) == ("session.draft", talk.id)
    draft = await ready(talk, truncate=7, append=" a turtle")
    assert draft["num_chars"] == len("what is a turtle")
    assert draft["num_tokens"] * 4 == len(fake.submits[-1].token_ids)


async def test_it_can_be_typed_anywhere_in_the_tree(client: TestClient[Any, Any]) -> None:
    talk = await talking(client)
    at_head = await ready(talk, text="one two ")
    at_root = await ready(talk, text="one two ", after="root")
    assert at_root["num_tokens"] < at_head["num_tokens"]


async def test_it_can_be_dropped(client: TestClient[Any, Any]) -> None:
    talk = await talking(client)
    await talk.post("/draft", {"text": "one"})
    for deleted in (True, False):
        async with client.delete(f"{talk.url}/draft") as response:
            assert response.status == 200
            assert await response.json() == {
                "object": "session.draft.deleted", "session": talk.id, "deleted": deleted
            }  # fmt: skip


async def test_what_is_wrong_is_told(client: TestClient[Any, Any]) -> None:
    talk = await talking(client)
    for change, param in (
        ({}, "text"),
        ({"text": "a", "append": "b"}, "text"),
        ({"truncate": -1}, "truncate"),
        ({"text": 1}, "text"),
    ):
        answer = await talk.post("/draft", change, 400)
        assert answer["error"]["param"] == param
    answer = await talk.post("/draft", {"text": "a", "after": "msg_99"}, 404)
    assert answer["error"]["param"] == "after"
    other = Talk(client, "nobody")
    answer = await other.post("/draft", {"text": "a"}, 404)
    assert answer["error"]["code"] == "session_not_found"


async def test_somebody_elses_session_is_as_none(aiohttp_client: AiohttpClient) -> None:
    settings = Settings(
        server=ServerSettings(api_keys=("one", "two")), engine=EngineSettings(engine="mock")
    )
    client = await aiohttp_client(build_app(settings, WatchedEngine(settings.engine)))
    talk = await begin(client, {"Authorization": "Bearer one"})
    talk.headers = {"Authorization": "Bearer two"}
    await talk.post("/draft", {"text": "a"}, 404)


async def test_it_can_be_turned_off(aiohttp_client: AiohttpClient) -> None:
    settings = Settings(engine=EngineSettings(engine="mock"), warm=WarmSettings(drafts=False))
    client = await aiohttp_client(build_app(settings, WatchedEngine(settings.engine)))
    talk = await begin(client)
    assert (await talk.post("/draft", {"text": "a"}))["state"] == "off"
