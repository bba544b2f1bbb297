"""/v1/responses over a fake engine, with the official clients on a real port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import openai
import orjson
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.responses import Response, ResponseItemList

from lmserve.bridge.fake import FakeEngine
from lmserve.messages import unpack_ids
from lmserve.server.lifecycle import Server, running_server
from lmserve.settings import ServerSettings, SessionSettings, Settings, StreamSettings
from tests.server.sdk_types import TYPES
from tests.server.talk import read_events

URL = "/v1/responses"
KEYS = {"ann": "key-of-ann", "bob": "key-of-bob"}


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    return replace(settings, sessions=SessionSettings(data_dir=str(tmp_path)))


@pytest.fixture
async def api(server: Server) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def web(server: Server) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(server.url) as session:
        yield session


async def post(web: aiohttp.ClientSession, path: str = "", status: int = 200, **body: Any) -> Any:
    async with web.post(URL + path, json=body) as response:
        answer = await response.json()
        assert response.status == status, answer
        return answer


async def get(web: aiohttp.ClientSession, id: str) -> Any:
    async with web.get(f"{URL}/{id}") as response:
        assert response.status == 200
        return await response.json()


async def running_in(web: aiohttp.ClientSession, session: str) -> str:
    """The response that is being made there, as soon as there is one."""
    while True:
        async with web.get(f"/v1/sessions/{session}") as response:
            running = (await response.json())["running"]
        if running:
            return str(running[0])
        await asyncio.sleep(0.01)


def texts(submit: Any) -> bytes:
    """The prompt, without the ids that stand for no byte."""
    return bytes(id for id in unpack_ids(submit.token_ids) if id < 256)


# --- answers ---------------------------------------------------------------------------------


async def test_an_answer(api: AsyncOpenAI, fake: Any) -> None:
    fake.will_say("Hel", "lo")
    raw = await api.responses.with_raw_response.create(
        model="mock", input="hi", temperature=0.5, metadata={"a": "b"}, user="me"
    )
    answer = raw.parse()
    Response.model_validate_json(raw.content, strict=True)
    assert (answer.output_text, answer.status) == ("Hello", "completed")
    assert (answer.temperature, answer.metadata, answer.user) == (0.5, {"a": "b"}, "me")
    assert answer.usage is not None and answer.completed_at is not None
    usage = answer.usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens > usage.output_tokens > 0
    assert usage.input_tokens_details.cached_tokens == 0
    assert raw.headers["X-Stream-Id"] == answer.id
    assert raw.headers["X-Session-Id"] == orjson.loads(raw.content)["session"]
    again = await api.responses.with_raw_response.retrieve(answer.id)
    assert orjson.loads(again.content) == orjson.loads(raw.content)


def converse(url: str) -> list[str]:
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as api:
        first = api.responses.create(model="mock", input="hi")
        with api.responses.stream(
            model="mock", input="yo", previous_response_id=first.id
        ) as stream:
            deltas = [e.delta for e in stream if e.type == "response.output_text.delta"]
            second = stream.get_final_response()
        items = api.responses.input_items.list(second.id, order="asc")
        api.responses.delete(second.id)
        return [first.output_text, second.output_text, "".join(deltas), *(i.type for i in items)]


async def test_the_client_that_is_not_async(server: Server, fake: Any) -> None:
    fake.will_say("Hel", "lo").will_say("go", "od")
    told = await asyncio.to_thread(converse, server.url)
    assert told == ["Hello", "good", "good", "message", "message", "message"]


async def test_what_follows_sees_what_came_before(api: AsyncOpenAI, fake: Any) -> None:
    fake.will_say("Hello").will_say("A").will_say("B")
    first = await api.responses.create(input="hi")
    second = await api.responses.create(input="one", previous_response_id=first.id)
    third = await api.responses.create(input="two", previous_response_id=first.id)
    assert second.previous_response_id == third.previous_response_id == first.id
    begin, one, two = (texts(submit) for submit in fake.submits)
    assert one.startswith(begin + b"Hello") and b"one" in one
    assert two.startswith(begin + b"Hello") and b"one" not in two


async def test_it_is_what_the_flat_history_gives(api: AsyncOpenAI, fake: Any) -> None:
    fake.will_say("Hello").will_say("A").will_say("A")
    first = await api.responses.create(input="hi", instructions="Be rude.")
    second = await api.responses.create(
        input="yo", previous_response_id=first.id, instructions="Be kind."
    )
    assert second.instructions == "Be kind."
    flat: list[Any] = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "yo"},
    ]
    await api.chat.completions.create(model="mock", messages=flat)
    assert fake.submits[1].token_ids == fake.submits[2].token_ids
    items = [item async for item in api.responses.input_items.list(second.id)]
    assert [item.role for item in items if item.type == "message"] == ["user", "assistant", "user"]


async def test_sending_an_answer_back(api: AsyncOpenAI, fake: Any) -> None:
    fake.will_say("Hello").will_say("A").will_say("B")
    question: dict[str, Any] = {"role": "user", "content": "hi"}
    first = await api.responses.create(input=[question])
    said: list[Any] = [question, *first.output, {"role": "user", "content": "yo"}]
    await api.responses.create(input=said, store=False)
    await api.responses.create(input="yo", previous_response_id=first.id)
    assert fake.submits[1].token_ids == fake.submits[2].token_ids


async def test_input_items(api: AsyncOpenAI, fake: Any) -> None:
    fake.will_say("Hello").will_say("A")
    first = await api.responses.create(input=[{"role": "developer", "content": "Be kind."},
                                              {"role": "user", "content": "hi"}])  # fmt: skip
    second = await api.responses.create(
        input=[
            {
                "type": "reasoning",
                "id": "rs_1",
                "summary": [{"type": "summary_text", "text": "Hm"}],
            },
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "12"},
        ],
        previous_response_id=first.id,
    )
    raw = await api.responses.input_items.with_raw_response.list(second.id, order="asc")
    listed = ResponseItemList.model_validate_json(raw.content, strict=True)
    assert [getattr(item, "role", item.type) for item in listed.data] == [
        "system", "user", "assistant", "reasoning", "function_call", "function_call_output",
    ]  # fmt: skip
    assert [item.id for item in listed.data][2] == first.output[0].id
    paged = [item.id async for item in api.responses.input_items.list(second.id, limit=1)]
    assert paged == [item.id for item in reversed(listed.data)]


async def test_a_conversation(web: aiohttp.ClientSession, api: AsyncOpenAI, fake: Any) -> None:
    fake.will_say("A").will_say("B").will_say("C")
    async with web.post("/v1/sessions", json={"id": "talk"}) as response:
        assert response.status == 200
    first = await api.responses.create(input="1", conversation="talk")
    second = await api.responses.create(input="2", conversation={"id": "talk"})
    assert first.conversation is not None and first.conversation.id == "talk"
    assert texts(fake.submits[1]).startswith(texts(fake.submits[0]) + b"A")
    edited = await post(web, input="3", conversation="talk", edit=(await get(web, second.id))[
        "input_message_ids"][0])  # fmt: skip
    async with web.get("/v1/sessions/talk/messages") as response:
        line = (await response.json())["data"]
    assert [message["content"] for message in line] == ["1", "A", "3", "C"]
    assert line[-1]["id"] == edited["message_id"] == edited["output"][0]["id"]
    assert len(line[2]["siblings"]) == 2


async def test_making_an_answer_again(web: aiohttp.ClientSession, fake: Any) -> None:
    fake.will_say("A").will_say("B")
    first = await post(web, input="hi")
    second = await post(web, regenerate=first["id"])
    assert second["input_message_ids"] == [] and second["session"] == first["session"]
    assert fake.submits[0].token_ids == fake.submits[1].token_ids
    async with web.get(f"/v1/sessions/{first['session']}/messages") as response:
        line = (await response.json())["data"]
    assert line[-1]["siblings"] == [first["message_id"], second["message_id"]]


async def test_going_on_with_an_answer(web: aiohttp.ClientSession, fake: Any) -> None:
    fake.will_say("Hel", finish="length").will_say("lo")
    first = await post(web, input="hi", max_output_tokens=3)
    assert (first["status"], first["incomplete_details"]) == (
        "incomplete",
        {"reason": "max_output_tokens"},
    )
    second = await post(web, **{"continue": first["id"]})
    assert second["output"][0]["content"][0]["text"] == "Hello"
    assert texts(fake.submits[1]) == texts(fake.submits[0]) + b"Hel"
    async with web.get(f"/v1/sessions/{first['session']}/messages") as response:
        assert [m["content"] for m in (await response.json())["data"]] == ["hi", "Hello"]


async def test_nothing_is_generated(
    web: aiohttp.ClientSession, api: AsyncOpenAI, fake: Any
) -> None:
    fake.will_say("x", finish="length").will_say("A")
    warm = await post(web, input="hi", generate=False)
    assert (warm["status"], warm["output"]) == ("completed", [])
    assert warm["usage"]["output_tokens"] == 0
    answer = await api.responses.create(input=[], previous_response_id=warm["id"])
    assert fake.submits[0].token_ids == fake.submits[1].token_ids
    assert answer.output_text == "A"


async def test_answers_that_are_not_stored(
    web: aiohttp.ClientSession, api: AsyncOpenAI, fake: Any
) -> None:
    fake.will_say("Hello").will_say("A")
    first = await api.responses.create(input="hi", store=False)
    assert first.output_text == "Hello"
    async with web.get("/v1/sessions") as response:
        assert (await response.json())["data"] == []
    second = await api.responses.create(input="yo", previous_response_id=first.id, store=False)
    assert second.output_text == "A"
    assert b"Hello" in texts(fake.submits[1])


# --- streams ---------------------------------------------------------------------------------


async def test_a_stream(web: aiohttp.ClientSession, fake: Any) -> None:
    fake.will_say("Hel", "lo")
    async with web.post(URL, json={"input": "hi", "stream": True}) as response:
        assert response.content_type == "text/event-stream"
        told = read_events(await response.read())
        id = told[0][1]["response"]["id"]
        assert response.headers["X-Stream-Id"] == id
        assert response.headers["X-Session-Id"] == told[0][1]["response"]["session"]
    for name, data in told:
        if name in TYPES:
            TYPES[name].model_validate_json(orjson.dumps(data), strict=True)
    assert "".join(data.get("delta", "") for _, data in told) == "Hello"
    assert told[-1][0] == "response.completed"
    assert told[-1][1]["response"] == await get(web, id)


async def test_reading_a_stream_again(api: AsyncOpenAI, fake: Any) -> None:
    fake.will_say("Hel", "lo")
    events = [event async for event in await api.responses.create(input="hi", stream=True)]
    first = events[0]
    assert first.type == "response.created"
    for after in (None, 0, 3, events[-1].sequence_number):
        given: Any = {} if after is None else {"starting_after": after}
        again = await api.responses.retrieve(first.response.id, stream=True, **given)
        assert [event async for event in again] == events[0 if after is None else after + 1 :]
    with pytest.raises(openai.BadRequestError, match="starting_after"):
        await api.responses.retrieve(first.response.id, stream=True, starting_after=99)


async def test_browsers_say_what_they_have_in_a_header(
    web: aiohttp.ClientSession, fake: Any
) -> None:
    fake.will_say("Hel", "lo")
    answer = await post(web, input="hi")
    url, header = f"{URL}/{answer['id']}?stream=true", {"Last-Event-ID": "2"}
    async with web.get(url, headers=header) as response:
        told = read_events(await response.read(), first=3)
    assert told[-1][1]["response"] == answer


async def test_two_read_one_answer(api: AsyncOpenAI, fake: Any) -> None:
    fake.will_hang("Hel")
    stream = await api.responses.create(input="hi", stream=True)
    seen = []
    async for event in stream:
        seen.append(event)
        if event.type == "response.output_text.delta":
            break
    assert seen[0].type == "response.created"
    id = seen[0].response.id
    other = await api.responses.retrieve(id, stream=True)
    stopped = await api.responses.cancel(id)
    assert stopped.status == "cancelled" and stopped.output_text == "Hel"
    rest = [event async for event in stream]
    assert seen + rest == [event async for event in other]
    assert rest[-1].type == "response.incomplete"
    assert (await api.responses.cancel(id)).status == "cancelled"


async def test_the_stream_helper(api: AsyncOpenAI, fake: Any) -> None:
    fake.will_say("Hel", "lo")
    async with api.responses.stream(model="mock", input="hi") as stream:
        snapshots = [e.snapshot async for e in stream if e.type == "response.output_text.delta"]
        answer = await stream.get_final_response()
    assert snapshots[-1] == answer.output_text == "Hello"
    async with api.responses.stream(response_id=answer.id, starting_after=4) as stream:
        assert [event.sequence_number async for event in stream][0] == 5
        assert (await stream.get_final_response()).output_text == "Hello"


async def test_waiting_is_told_and_breaks_no_client(api: AsyncOpenAI, fake: Any) -> None:
    fake.will_queue(1)
    fake.will_hang("x").will_hang("y").will_say("Hello")
    before = [await api.responses.create(input="hi", background=True) for _ in range(2)]
    seen: list[Any] = []
    async for event in await api.responses.create(input="yo", stream=True):
        seen.append(event)
        if event.type == "session.queued":
            for answer in before:
                await api.responses.cancel(answer.id)
            before = []
    queued = [event for event in seen if event.type == "session.queued"]
    assert queued and queued[0].position == 1
    assert queued[0].response_id == seen[0].response.id
    assert seen[-1].response.output_text == "Hello"


async def test_in_the_background(api: AsyncOpenAI, fake: Any) -> None:
    fake.will_say("Hel", "lo")
    answer = await api.responses.create(input="hi", background=True)
    assert answer.background and answer.status in ("queued", "in_progress")
    while answer.status in ("queued", "in_progress"):
        await asyncio.sleep(0.01)
        answer = await api.responses.retrieve(answer.id)
    assert (answer.status, answer.output_text) == ("completed", "Hello")


async def test_a_background_answer_is_stopped(api: AsyncOpenAI, fake: Any) -> None:
    fake.will_hang("Hel")
    answer = await api.responses.create(input="hi", background=True)
    assert (await api.responses.cancel(answer.id)).status == "cancelled"


async def test_sent_twice_made_once(web: aiohttp.ClientSession, fake: Any) -> None:
    fake.will_say("Hello")
    body, header = {"input": "hi"}, {"Idempotency-Key": "k1"}
    answers = []
    for _ in range(2):
        async with web.post(URL, json=body, headers=header) as response:
            answers.append(await response.json())
    assert answers[0] == answers[1] and len(fake.submits) == 1
    async with web.post(URL, json={"input": "yo"}, headers=header) as response:
        assert response.status == 409
        error = (await response.json())["error"]
        assert (error["code"], error["param"]) == ("idempotency_key_reused", "Idempotency-Key")


# --- while it runs ---------------------------------------------------------------------------


async def test_steering(web: aiohttp.ClientSession, fake: Any) -> None:
    fake.will_hang("Hel").will_hang("good")
    async with web.post(URL, json={"input": "hi", "stream": True}) as running:
        stream = b""
        while b"output_text.delta" not in stream:
            stream += await running.content.readany()
        id = running.headers["X-Stream-Id"]
        steer = await post(web, f"/{id}/steer", input="Shorter")
        assert (steer["object"], steer["previous_response_id"]) == ("response.steer", id)
        told = read_events(stream + await running.read())
    names = [name for name, _ in told]
    assert "response.steer.accepted" in names and names[-1] == "response.incomplete"
    assert told[-1][1]["response"]["incomplete_details"] == {"reason": "steered"}
    await post(web, f"/{id}/steer", 409, input="Shorter")
    successor = await running_in(web, told[-1][1]["response"]["session"])
    ended = await post(web, f"/{successor}/cancel")
    assert ended["previous_response_id"] == id
    assert texts(fake.submits[1]).startswith(texts(fake.submits[0]) + b"Hel")


async def test_changing_settings(web: aiohttp.ClientSession, fake: Any) -> None:
    fake.will_hang("Hel")
    running = await post(web, input="hi", background=True)
    await fake.submitted.wait()
    async with web.get(f"/v1/sessions/{running['session']}") as response:
        assert (await response.json())["running"] == [running["id"]]
    changed = await post(web, f"/{running['id']}", temperature=0.5, max_output_tokens=99)
    assert changed["id"] == running["id"]
    assert (changed["temperature"], changed["max_output_tokens"]) == (0.5, 99)
    error = (await post(web, f"/{running['id']}", 400, max_output_tokens=0))["error"]
    assert error["param"] == "max_output_tokens"
    ended = await post(web, f"/{running['id']}/cancel")
    assert (ended["temperature"], ended["max_output_tokens"]) == (0.5, 99)
    await post(web, f"/{running['id']}", 409, temperature=0.5)


# --- who leaves ------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_nobody_reads_it(settings: Settings, fake: Any, stream: bool, start: Any) -> None:
    url = await start(replace(settings, streams=StreamSettings(stream_grace_s=0.0)))
    fake.will_hang("Hel")
    async with aiohttp.ClientSession(url) as web:
        asking = asyncio.create_task(web.post(URL, json={"input": "hi", "stream": stream}))
        await fake.submitted.wait()
        if stream:
            (await asking).close()
        else:
            asking.cancel()
        await fake.aborted.wait()


@pytest.fixture
async def start(fake: Any) -> AsyncIterator[Any]:
    """Servers with settings of their own."""
    async with AsyncExitStack() as stack:

        async def start(settings: Settings) -> str:
            server: Server = await stack.enter_async_context(running_server(settings, fake))
            return server.url

        yield start


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure(web: aiohttp.ClientSession, fake: Any, stream: bool) -> None:
    fake.will_fail("out of luck", "x")
    async with web.post(URL, json={"input": "hi", "stream": stream}) as response:
        if stream:
            told = read_events(await response.read())
            assert told[-1][0] == "response.failed"
            error = told[-1][1]["response"]["error"]
            assert (error["code"], error["message"]) == ("server_error", "out of luck")
            assert (await get(web, told[-1][1]["response"]["id"]))["status"] == "failed"
        else:
            assert response.status == 500
            assert (await response.json())["error"]["message"] == "out of luck"


REFUSED: list[tuple[dict[str, Any], int, str | None, str]] = [
    ({"model": "none", "input": "hi"}, 404, "model_not_found", "model"),
    ({"input": "hi", "temperature": 9}, 400, "invalid_value", "temperature"),
    ({"input": "hi", "max_output_tokens": 0}, 400, "invalid_value", "max_output_tokens"),
    ({"input": "x" * 10_000}, 400, "context_length_exceeded", "input"),
    ({"input": "hi", "tools": [{"type": "function"}]}, 400, "invalid_value", "tools[0].name"),
    (
        {"input": "hi", "previous_response_id": "resp_none"},
        404,
        "previous_response_not_found",
        "previous_response_id",
    ),
    ({"input": "hi", "conversation": "nobody"}, 404, "session_not_found", "conversation"),
    ({"input": "hi", "conversation": "a b"}, 404, "session_not_found", "conversation"),
    ({"regenerate": "resp_none"}, 404, "response_not_found", "regenerate"),
    ({"continue": "resp_none"}, 404, "response_not_found", "continue"),
    ({"input": "hi", "metadata": {"x" * 65: "y"}}, 400, "invalid_value", "metadata"),
    ({"input": "hi", "metadata": {"x": "y" * 513}}, 400, "invalid_value", "metadata.x"),
    (
        {"input": "hi", "metadata": {str(i): "y" for i in range(17)}},
        400,
        "invalid_value",
        "metadata",
    ),
]


@pytest.mark.parametrize(("body", "status", "code", "param"), REFUSED)
async def test_refused(
    web: aiohttp.ClientSession, body: dict[str, Any], status: int, code: str, param: str
) -> None:
    error = (await post(web, "", status, **body))["error"]
    assert (error["code"], error["param"]) == (code, param)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("GET", "?stream=true"),
        ("GET", "/input_items"),
        ("DELETE", ""),
        ("POST", "/cancel"),
        ("POST", "/steer"),
        ("POST", ""),
    ],
)
async def test_another_ones_response_is_as_none(
    settings: Settings, fake: Any, start: Any, method: str, path: str
) -> None:
    keys = ServerSettings(
        server_port=0, model_name="mock", drain_timeout_s=0.2, api_keys=tuple(KEYS.values())
    )
    url = await start(replace(settings, server=keys))
    fake.will_say("Hello")
    headers = {name: {"Authorization": f"Bearer {key}"} for name, key in KEYS.items()}
    async with aiohttp.ClientSession(url) as web:
        async with web.post(URL, json={"input": "hi"}, headers=headers["ann"]) as response:
            id = (await response.json())["id"]
        body = None if method == "GET" else {"input": "a", "temperature": 0.5}
        for wanted, of in (("resp_none", "ann"), (id, "bob")):
            async with web.request(
                method, f"{URL}/{wanted}{path}", json=body, headers=headers[of]
            ) as response:
                assert response.status == 404
                assert (await response.json())["error"]["code"] == "response_not_found"


async def test_a_deleted_response_is_gone(api: AsyncOpenAI, fake: Any) -> None:
    fake.will_say("Hello")
    answer = await api.responses.create(input="hi")
    await api.responses.delete(answer.id)
    for call in (api.responses.retrieve, api.responses.delete, api.responses.cancel):
        with pytest.raises(openai.NotFoundError):
            await call(answer.id)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("?stream=1", "stream"),
        ("?stream=true&starting_after=x", "starting_after"),
        ("/input_items?limit=0", "limit"),
        ("/input_items?order=up", "order"),
        ("/input_items?after=msg_999", "after"),
    ],
)
async def test_bad_queries(web: aiohttp.ClientSession, fake: Any, query: str, param: str) -> None:
    fake.will_say("Hello")
    answer = await post(web, input="hi")
    async with web.get(f"{URL}/{answer['id']}{query}") as response:
        assert response.status == 400
        assert (await response.json())["error"]["param"] == param


async def test_it_is_there_after_a_restart(settings: Settings, fake: Any) -> None:
    fake.will_say("Hel", "lo")
    async with running_server(settings, fake) as first:
        async with aiohttp.ClientSession(first.url) as web:
            async with web.post(URL, json={"input": "hi", "stream": True}) as response:
                told = read_events(await response.read())
    again = FakeEngine(settings.engine)
    again.will_say("A")
    async with running_server(settings, again) as second:
        async with aiohttp.ClientSession(second.url) as web:
            answer = told[-1][1]["response"]
            assert await get(web, answer["id"]) == answer
            async with web.get(f"{URL}/{answer['id']}?stream=true") as response:
                assert read_events(await response.read()) == told
            later = await post(web, input="yo", previous_response_id=answer["id"])
            assert later["session"] == answer["session"]
            assert b"Hello" in texts(again.submits[0])
