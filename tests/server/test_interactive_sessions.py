"""POST /v1/chat/interactive with sessions: history, cancel, end, overflow, one turn at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import given
from hypothesis import strategies as st
from pytest_aiohttp import AiohttpClient

from lmserve.bridge.fake import FakeEngine
from lmserve.errors import StoreError
from lmserve.messages import unpack_ids
from lmserve.server.app import build_app
from lmserve.server.lifecycle import Server
from lmserve.service.sessions.sessions import Turn
from lmserve.settings import SessionSettings, Settings

GOLDEN = Path(__file__).parent.parent / "golden"
URL = "/v1/chat/interactive"
TURN: dict[str, Any] = {"prompt": "hi", "session_id": 1, "interactive_mode": True}
END: dict[str, Any] = {"prompt": "", "session_id": 1, "request_output_len": 0}
CANCEL: dict[str, Any] = {"prompt": "", "session_id": 1, "cancel": True}
ZEROS = {"text": "", "tokens": 0, "input_tokens": 0, "history_tokens": 0, "finish_reason": "stop"}
PROMPT_TOKENS = 21  # of "hi" in the mock's template
KEPT = PROMPT_TOKENS + len("Hello")  # after a first turn that said so


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    return replace(settings, sessions=SessionSettings(data_dir=str(tmp_path)))


def golden(name: str) -> bytes:
    return (GOLDEN / name).read_bytes()


async def say(client: TestClient, body: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """The whole answer, which is told with 200."""
    response = await client.post(URL, json=body | fields)
    assert response.status == 200, await response.text()
    assert response.content_type == "application/json"
    answer: dict[str, Any] = await response.json()
    assert list(answer) == list(ZEROS)
    return answer


async def history(client: TestClient, fake: Any, **fields: Any) -> int:
    """The tokens a session holds, as its next turn tells them."""
    fake.will_say("x")
    tokens: int = (await say(client, TURN, **fields))["history_tokens"]
    return tokens


async def test_a_second_turn_goes_on_from_the_first(client: TestClient, fake: Any) -> None:
    fake.will_say("Hel", "lo").will_say("good")
    response = await client.post(URL, json=TURN)
    assert response.headers["X-Session-Id"] == "1"
    first = await response.json()
    assert (first["input_tokens"], first["history_tokens"]) == (PROMPT_TOKENS, 0)
    response = await client.post(URL, json=TURN | {"prompt": "yo", "stream": True})
    assert response.headers["X-Session-Id"] == "1"
    assert "X-Cached-Tokens" in response.headers
    assert await response.read() == await asyncio.to_thread(golden, "interactive_turn.jsonl")
    one, two = (unpack_ids(submit.token_ids) for submit in fake.submits)
    assert two[:KEPT] == [*one, *b"Hello"]


async def test_sessions_do_not_meet(client: TestClient, fake: Any) -> None:
    fake.will_say("Hello")
    await say(client, TURN)
    assert await history(client, fake, session_id=2) == 0
    assert await history(client, fake) == KEPT


async def test_a_new_session_is_told(client: TestClient, fake: Any) -> None:
    fake.will_say("Hello").will_say("Hello")
    bodies = [TURN | {"session_id": -1}, TURN | {"session_id": None, "stream": True}]
    responses = [await client.post(URL, json=body) for body in bodies]
    ids = [int(response.headers["X-Session-Id"]) for response in responses]
    assert [await response.read() for response in responses]
    assert len(set(ids)) == 2 and min(ids) >= 0
    for id in ids:
        assert await history(client, fake, session_id=id) == KEPT


@pytest.mark.parametrize("stream", [False, True])
async def test_the_last_turn(client: TestClient, fake: Any, stream: bool) -> None:
    """Without interactive mode it goes on from the history and ends the session."""
    fake.will_say("Hello").will_say("bye")
    await say(client, TURN)
    response = await client.post(URL, json=TURN | {"interactive_mode": False, "stream": stream})
    first = orjson.loads((await response.read()).splitlines()[0])
    assert first["history_tokens"] == KEPT
    assert await history(client, fake) == 0


async def test_ending(client: TestClient, fake: Any) -> None:
    fake.will_say("Hello")
    await say(client, TURN)
    for stream in (False, True, False):
        assert await say(client, END, stream=stream) == ZEROS
    assert len(fake.submits) == 1
    assert await history(client, fake) == 0


async def test_ending_stops_the_answer_and_refuses_who_waits(client: TestClient, fake: Any) -> None:
    fake.will_hang("Hel")
    running = await client.post(URL, json=TURN | {"stream": True})
    assert b"Hel" in await running.content.readline()
    calls = [asyncio.create_task(client.post(URL, json=TURN)) for _ in range(9)]
    (refused,), waiting = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    assert refused.result().status == 429  # so the others wait by now
    assert await say(client, END) == ZEROS
    assert orjson.loads((await running.read()).splitlines()[-1])["finish_reason"] == "stop"
    assert [(await call).status for call in waiting] == [409] * 8
    assert await history(client, fake) == 0


async def test_cancelling(client: TestClient, fake: Any) -> None:
    fake.will_hang("Hel")
    running = await client.post(URL, json=TURN | {"stream": True})
    first = await running.content.readline()
    assert await say(client, CANCEL, stream=True) == ZEROS
    stream = first + await running.read()
    assert stream == await asyncio.to_thread(golden, "interactive_cancel.jsonl")
    assert await history(client, fake) == PROMPT_TOKENS + len("Hel")


async def test_cancelling_an_answer_that_is_not_streamed(client: TestClient, fake: Any) -> None:
    fake.will_hang("Hel")
    running = asyncio.create_task(say(client, TURN))
    await fake.submitted.wait()
    assert await say(client, CANCEL) == ZEROS
    answer = await running
    assert answer["finish_reason"] == "stop"
    assert answer["text"] in ("", "Hel")


async def test_cancelling_nothing(client: TestClient, fake: Any) -> None:
    assert await say(client, CANCEL) == ZEROS
    assert fake.submits == []


async def test_cancelling_an_answer_of_another_route(client: TestClient, fake: Any) -> None:
    fake.will_hang("Hel")
    chat = {"messages": [{"role": "user", "content": "hi"}], "session_id": 1, "stream": True}
    running = await client.post("/v1/chat/completions", json=chat)
    await running.content.readline()
    assert await say(client, CANCEL) == ZEROS
    assert b'"finish_reason":"abort"' in await running.read()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_history_replayed_without_an_answer(
    client: TestClient, fake: Any, stream: bool
) -> None:
    replayed = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello"}]
    body = TURN | {"prompt": replayed, "request_output_len": 0, "stream": stream}
    response = await client.post(URL, json=body)
    assert response.headers["X-Session-Id"] == "1"
    assert orjson.loads(await response.read()) == ZEROS | {"finish_reason": "length"}
    assert fake.submits == []
    fake.will_say("good")
    answer = await say(client, TURN, prompt="yo")
    fake.will_say("good")
    chat = {"messages": [*replayed, {"role": "user", "content": "yo"}]}
    await client.post("/v1/chat/completions", json=chat)
    interactive, whole = fake.submits
    assert interactive.token_ids == whole.token_ids
    assert answer["history_tokens"] + answer["input_tokens"] == len(unpack_ids(whole.token_ids))


@pytest.mark.parametrize("stream", [False, True])
async def test_a_full_session_keeps_its_history(
    client: TestClient, fake: Any, stream: bool
) -> None:
    fake.will_say("Hello")
    await say(client, TURN)
    response = await client.post(URL, json=TURN | {"prompt": "x" * 10_000, "stream": stream})
    assert (response.status, response.headers["X-Session-Id"]) == (200, "1")
    told = await response.read()
    assert told.rstrip() == (await asyncio.to_thread(golden, "interactive_overflow.jsonl")).rstrip()
    assert told.endswith(b"\n") == stream
    assert await history(client, fake) == KEPT


@pytest.mark.parametrize("stream", [False, True])
async def test_a_lost_session_says_so_once(
    aiohttp_client: AiohttpClient, settings: Settings, fake: Any, stream: bool
) -> None:
    few = replace(settings.sessions, max_sessions=1)
    client = await aiohttp_client(build_app(replace(settings, sessions=few), fake))
    for id in (1, 2):
        assert await history(client, fake, session_id=id) == 0
    response = await client.post(URL, json=TURN | {"stream": stream})
    assert response.status == 200
    answer = orjson.loads(await response.read())
    assert answer["text"]
    assert answer | {"text": ""} == ZEROS | {"finish_reason": "error"}
    assert await history(client, fake) == 0
    assert await history(client, fake) > 0


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_in_a_session(client: TestClient, fake: Any, stream: bool) -> None:
    fake.will_say("Hello").will_fail("out of luck", "x")
    await say(client, TURN)
    response = await client.post(URL, json=TURN | {"stream": stream})
    assert response.status == 200
    answer = orjson.loads((await response.read()).splitlines()[-1])
    assert answer["text"] == "internal error happened: out of luck"
    assert (answer["tokens"], answer["finish_reason"]) == (0, "error")
    assert answer["history_tokens"] == KEPT
    assert await history(client, fake) >= KEPT


@pytest.mark.parametrize("stream", [False, True])
async def test_a_turn_that_could_not_be_kept_says_so(
    client: TestClient, fake: Any, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def settled(self: Turn) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(Turn, "settled", settled)
    fake.will_say("Hello")
    response = await client.post(URL, json=TURN | {"stream": stream})
    last = orjson.loads((await response.read()).splitlines()[-1])
    assert (last["finish_reason"], response.status) == ("error", 200)
    assert "the disk is full" in last["text"]


async def test_a_bug_is_told_and_logged(
    client: TestClient, fake: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def settled(self: Turn) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Turn, "settled", settled)
    fake.will_say("Hello").will_say("Hello")
    response = await client.post(URL, json=TURN | {"stream": True})
    last = orjson.loads((await response.read()).splitlines()[-1])
    assert last["finish_reason"] == "error"
    assert response.headers["X-Request-Id"] in last["text"]
    assert (await client.post(URL, json=TURN)).status == 500
    assert [type(record.exc_info[1]) for record in caplog.records if record.exc_info] == [
        ZeroDivisionError,
        ZeroDivisionError,
    ]


async def test_sessions_of_different_keys_do_not_meet(
    aiohttp_client: AiohttpClient, settings: Settings, fake: Any
) -> None:
    keys = ("one", "two")
    settings = replace(settings, server=replace(settings.server, api_keys=keys))
    client = await aiohttp_client(build_app(settings, fake))
    for stream in (False, True):
        assert (await client.post(URL, json=TURN | {"stream": stream})).status == 401
    histories = []
    for key in (*keys, *keys):
        fake.will_say("Hello")
        headers = {"Authorization": f"Bearer {key}"}
        response = await client.post(URL, json=TURN, headers=headers)
        histories.append((await response.json())["history_tokens"])
    assert histories == [0, 0, KEPT, KEPT]


# --- one turn at a time ---------------------------------------------------------------------


async def test_a_busy_session_may_refuse(
    aiohttp_client: AiohttpClient, settings: Settings, fake: Any
) -> None:
    strict = replace(settings.sessions, session_busy="refuse")
    client = await aiohttp_client(build_app(replace(settings, sessions=strict), fake))
    fake.will_hang("Hel")
    running = await client.post(URL, json=TURN | {"stream": True})
    refused = await client.post(URL, json=TURN | {"stream": True})
    assert refused.status == 409
    assert (await refused.json())["error"]["code"] == "session_busy"
    await say(client, CANCEL)
    await running.read()


async def test_eight_wait_and_more_are_refused(client: TestClient, fake: Any) -> None:
    fake.will_hang("Hel")
    running = await client.post(URL, json=TURN | {"stream": True})
    await running.content.readline()
    for _ in range(8):
        fake.will_say("x")
    calls = [asyncio.create_task(client.post(URL, json=TURN)) for _ in range(10)]
    refused: set[asyncio.Task[Any]] = set()
    while len(refused) < 2:
        refused, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    for call in refused:
        response = call.result()
        assert response.status == 429
        assert int(response.headers["Retry-After"]) >= 1
    assert len(fake.submits) == 1
    await say(client, CANCEL)
    await running.read()
    answers = [await call.result().json() for call in calls if await call and call not in refused]
    histories = sorted(answer["history_tokens"] for answer in answers)
    assert len(histories) == 8 and len(set(histories)) == 8  # each after the one before


@pytest.fixture
async def web(server: Server) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of the production entry, where a lost client cancels its handler."""
    async with aiohttp.ClientSession(server.url) as session:
        yield session


async def gone(caplog: pytest.LogCaptureFixture) -> None:
    """Until the server has seen a client leave."""
    async with asyncio.timeout(10):
        while not any(" gone " in record.getMessage() for record in caplog.records):  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_a_client_that_leaves_the_queue_is_not_served(
    web: aiohttp.ClientSession, fake: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "lmserve.access")
    fake.will_hang("Hel")
    async with web.post(URL, json=TURN | {"stream": True}) as running:
        await running.content.readline()
        calls = [asyncio.create_task(web.post(URL, json=TURN)) for _ in range(9)]
        (refused,), waiting = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        assert refused.result().status == 429
        leaving = waiting.pop()
        leaving.cancel()
        await gone(caplog)
        for _ in range(8):
            fake.will_say("x")
        after = asyncio.create_task(web.post(URL, json=TURN))  # takes the place that is free
        await web.post(URL, json=CANCEL)
        assert [(await call).status for call in (*waiting, after)] == [200] * 8
    assert len(fake.submits) == 9


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_ends_its_answer(
    web: aiohttp.ClientSession, fake: Any, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """What was said by then is kept."""
    caplog.set_level("INFO", "lmserve.access")
    fake.will_hang("Hel")
    call = asyncio.create_task(web.post(URL, json=TURN | {"stream": stream}))
    if stream:
        response = await call
        await response.content.readline()
        response.close()
    else:
        await fake.submitted.wait()
        call.cancel()
    await gone(caplog)
    await fake.aborted.wait()
    fake.will_say("x")
    async with web.post(URL, json=TURN) as response:
        answer = await response.json()
    said = answer["history_tokens"] - PROMPT_TOKENS
    assert said == len("Hel") if stream else said in (0, len("Hel"))


# --- bytes ----------------------------------------------------------------------------------


async def streamed(client: TestClient, fake: FakeEngine, pieces: list[list[int]]) -> list[Any]:
    fake.will_say(*pieces)
    response = await client.post(URL, json={"prompt": "hi", "stream": True})
    return [orjson.loads(line) for line in (await response.read()).splitlines()]


def test_any_split_into_steps_is_the_same_answer(settings: Settings) -> None:
    with asyncio.Runner() as runner:
        fake = FakeEngine(settings.engine)
        client = runner.run(opened(settings, fake))

        @given(
            text=st.text(st.sampled_from('aü€😀 \n"\\'), min_size=1, max_size=20),
            cuts=st.sets(st.integers(1, 79)),
        )
        def check(text: str, cuts: set[int]) -> None:
            said = list(text.encode())
            edges = [0, *sorted(cut for cut in cuts if cut < len(said)), len(said)]
            pieces = [said[a:b] for a, b in pairwise(edges)]
            read = runner.run(streamed(client, fake, pieces))
            assert "".join(line["text"] for line in read) == text
            tokens = [line["tokens"] for line in read]
            assert tokens == sorted(tokens) and tokens[-1] == len(said) + 1  # the end token
            assert [line["finish_reason"] for line in read] == [None] * (len(read) - 1) + ["stop"]
            assert read[-1]["text"] == ""

        try:
            check()
        finally:
            runner.run(client.close())


async def opened(settings: Settings, fake: FakeEngine) -> TestClient:
    client = TestClient(TestServer(build_app(settings, fake)))
    await client.start_server()
    return client
