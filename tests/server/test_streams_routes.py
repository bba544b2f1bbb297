"""Streams that are kept, over real sockets: cut anywhere, gone on with, read by several, joined."""

from __future__ import annotations

import asyncio
import random
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp.test_utils import TestClient

from lmserve.bridge.assets import FIRST_WORD_ID
from lmserve.server.keys import STREAMS
from lmserve.server.lifecycle import Server, running_server
from lmserve.service.streams.stream import StreamEvent
from lmserve.settings import Settings, StreamSettings

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HI: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
WHOLE = HI | {"stream": False}
RESUMABLE = {"X-Resumable": "true"}
KEY = {"Idempotency-Key": "k 1"}

Frame = tuple[int, str]


@pytest.fixture
async def web(server: Server) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(server.url) as session:
        yield session


@asynccontextmanager
async def served(
    settings: Settings, fake: Any, *, keys: tuple[str, ...] = (), **streams: float
) -> AsyncIterator[aiohttp.ClientSession]:
    """A server with these stream settings."""
    settings = replace(
        settings,
        server=replace(settings.server, api_keys=keys),
        streams=StreamSettings(**streams),  # type: ignore[arg-type]
    )
    async with running_server(settings, fake) as running, aiohttp.ClientSession(running.url) as web:
        yield web


def frames(stream: bytes) -> list[Frame]:
    """Those that are complete; a cut may have left a part of one."""
    told = []
    for block in stream.decode().split("\n\n")[:-1]:
        number, data = block.split("\n")
        told.append((int(number.removeprefix("id: ")), data.removeprefix("data: ")))
    return told


def text_of(told: list[Frame]) -> str:
    assert told[-1][1] == "[DONE]"
    chunks = [orjson.loads(data) for _, data in told[:-1]]
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


async def begin(
    web: Any, body: dict[str, Any] = HI, path: str = CHAT, headers: dict[str, str] = RESUMABLE
) -> Any:
    response = await web.post(path, json=body, headers=headers)
    assert response.status == 200, await response.read()
    return response


async def read(web: Any, id: str, after: int | None = None, *, header: bool = False) -> Any:
    url = f"/v1/streams/{id}"
    if after is None:
        return await web.get(url)
    if header:
        return await web.get(url, headers={"Last-Event-ID": str(after)})
    return await web.get(url, params={"starting_after": str(after)})


async def error_of(response: Any) -> tuple[int, Any, Any]:
    error = (await response.json())["error"]
    return response.status, error["code"], error["param"]


def pause_at(fake: Any, step: int) -> asyncio.Event:
    """The engine makes so many more steps, then none until `fake.resume()`; set when it rests."""
    last = fake.stats.steps + step
    rests = asyncio.Event()

    def on_step(stats: Any) -> None:
        if stats.steps == last:
            fake.hang()
            rests.set()

    fake.on_step = on_step
    return rests


async def until_frames(response: Any, number: int) -> bytes:
    stream = b""
    while len(frames(stream)) < number:
        part = await response.content.readany()
        assert part, stream
        stream += part
    return stream


async def read_bytes(response: Any, number: int) -> bytes:
    """So many, or all there are."""
    stream = b""
    while len(stream) < number and (part := await response.content.read(number - len(stream))):
        stream += part
    return stream


# --- one stream -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_it_says_what_a_plain_one_says(web: Any, fake: Any, path: str) -> None:
    body = {"prompt": "hi", "stream": True} if path == COMPLETIONS else HI
    body = body | {"stream_options": {"include_usage": True}}
    fake.will_say("Hel", "lo").will_say("Hel", "lo")
    plain = await (await web.post(path, json=body)).text()
    response = await begin(web, body, path)
    assert response.content_type == "text/event-stream"
    told = frames(await response.read())
    assert [number for number, _ in told] == list(range(len(told)))
    assert told[-1][1] == "[DONE]"

    def normalised(stream: str) -> str:
        return re.sub(r'(cmpl-)\w+|("created":)\d+', r"\1\2", stream)

    again = "".join(f"data: {data}\n\n" for _, data in told)
    assert normalised(again) == normalised(plain)
    reread = await read(web, response.headers["X-Stream-Id"])
    assert reread.content_type == "text/event-stream"
    assert reread.headers["X-Stream-Id"] == response.headers["X-Stream-Id"]
    assert frames(await reread.read()) == told


async def test_several_prompts(web: Any, fake: Any) -> None:
    fake.will_say("a", "b").will_say("x", "y")
    response = await begin(web, {"prompt": ["1", "2"], "stream": True}, COMPLETIONS)
    told = frames(await response.read())
    texts = ["", ""]
    for _, data in told[:-1]:
        (choice,) = orjson.loads(data)["choices"]
        texts[choice["index"]] += choice["text"]
    assert texts == ["ab", "xy"]
    assert frames(await (await read(web, response.headers["X-Stream-Id"], 1)).read()) == told[2:]


async def test_named_events_and_those_that_come(client: TestClient) -> None:
    assert client.app is not None
    streams = client.app[STREAMS]
    stream = streams.open("strm_1", "", lambda: None)
    stream.append(StreamEvent(b"a.b", b'{"x":1}'))
    stream.append(StreamEvent(b"", b"[DONE]"))
    response = await client.get("/v1/streams/strm_1")
    expected = b'id: 0\nevent: a.b\ndata: {"x":1}\n\nid: 1\ndata: [DONE]\n\n'
    assert await response.content.readexactly(len(expected)) == expected
    stream.append(StreamEvent(b"c", b"{}"))
    assert await response.content.readuntil(b"\n\n") == b"id: 2\nevent: c\ndata: {}\n\n"
    streams.end(stream)
    assert await response.read() == b""


async def test_the_headers_come_before_the_first_event(client: TestClient) -> None:
    assert client.app is not None
    stream = client.app[STREAMS].open("strm_1", "", lambda: None)
    response = await client.get("/v1/streams/strm_1")
    assert response.headers["X-Stream-Id"] == "strm_1" and stream.num_readers == 1
    response.close()


@pytest.mark.parametrize("value", ["false", "0", "False"])
async def test_not_asked_for(web: Any, fake: Any, value: str) -> None:
    fake.will_say("a")
    response = await web.post(CHAT, json=HI, headers={"X-Resumable": value})
    assert "X-Stream-Id" not in response.headers
    assert (await response.read()).startswith(b"data: ")


async def test_a_whole_answer_that_could_be_resumed_is_a_whole_answer(web: Any, fake: Any) -> None:
    fake.will_say("Hel", "lo")
    response = await web.post(CHAT, json=WHOLE, headers=RESUMABLE)
    assert (await response.json())["choices"][0]["message"]["content"] == "Hello"


@pytest.mark.parametrize("seed", range(6))
async def test_cut_anywhere_and_gone_on_with(web: Any, fake: Any, seed: int) -> None:
    """First in mid-answer; then each connection after some bytes, until the end was read."""
    draw = random.Random(seed)
    step = draw.randrange(1, 60)
    rests = pause_at(fake, step)
    response = await begin(web, HI | {"max_tokens": 60})
    told = frames(await until_frames(response, draw.randint(1, step)))
    response.close()  # the connection with it
    await rests.wait()
    fake.resume()
    id = response.headers["X-Stream-Id"]
    while told[-1][1] != "[DONE]":
        response = await read(web, id, told[-1][0], header=draw.random() < 0.5)
        assert response.status == 200
        told += frames(await read_bytes(response, draw.randrange(1, 3000)))
        response.close()
    assert told == frames(await (await read(web, id)).read())
    assert [number for number, _ in told] == list(range(len(told)))
    assert len(fake.submits) == 1 and not fake.aborts


async def test_several_readers_follow_one_answer(web: Any, fake: Any) -> None:
    fake.will_say(*"abcdefgh")
    rests = pause_at(fake, 3)
    first = await begin(web)
    id = first.headers["X-Stream-Id"]
    begun = await until_frames(first, 4)  # the role and three letters
    readers = [await read(web, id, after) for after in (None, -1, 0, 2, 3)]
    await rests.wait()
    fake.resume()
    told = frames(begun + await first.read())
    assert text_of(told) == "abcdefgh"
    rest = [frames(await reader.read()) for reader in readers]
    assert rest == [told, told, told[1:], told[3:], told[4:]]


async def test_it_goes_on_while_nobody_reads(web: Any, fake: Any) -> None:
    fake.will_say(*"abcdefgh")
    rests = pause_at(fake, 2)
    first = await begin(web)
    await until_frames(first, 2)
    first.close()
    await rests.wait()
    fake.resume()
    told = frames(await (await read(web, first.headers["X-Stream-Id"])).read())
    assert text_of(told) == "abcdefgh"


async def test_after_the_grace_it_stops(settings: Settings, fake: Any) -> None:
    fake.will_hang("a")
    async with served(settings, fake, stream_grace_s=0.0) as web:
        first = await begin(web)
        await until_frames(first, 2)
        first.close()
        await fake.aborted.wait()
        told = frames(await (await read(web, first.headers["X-Stream-Id"])).read())
        assert text_of(told) == "a"
        assert orjson.loads(told[-2][1])["choices"][0]["finish_reason"] == "abort"


async def test_a_client_that_leaves_before_the_first_event(server: Server, fake: Any) -> None:
    fake.will_hang()
    async with aiohttp.ClientSession(server.url) as web:
        asking = asyncio.create_task(begin(web))
        await fake.submitted.wait()
        asking.cancel()
        await fake.aborted.wait()


async def test_a_failure_in_mid_answer_is_told_again(web: Any, fake: Any) -> None:
    fake.will_fail("out of luck", "a")
    first = await begin(web)
    told = frames(await first.read())
    assert orjson.loads(told[-2][1])["error"]["message"] == "out of luck"
    assert told[-1][1] == "[DONE]"
    assert frames(await (await read(web, first.headers["X-Stream-Id"], 1)).read()) == told[2:]


async def test_a_failure_before_it_is_a_status(web: Any, fake: Any) -> None:
    fake.will_fail("out of luck")
    response = await web.post(CHAT, json=HI, headers=RESUMABLE)
    assert await error_of(response) == (500, "engine_error", None)
    response = await web.post(CHAT, json=HI | {"temperature": -1}, headers=RESUMABLE)
    assert await error_of(response) == (400, "invalid_value", "temperature")


async def test_the_end_of_the_server_is_told_as_an_end(settings: Settings, fake: Any) -> None:
    fake.will_hang("a")
    async with aiohttp.ClientSession() as web:
        async with running_server(settings, fake) as server:
            first = await begin(web, path=server.url + CHAT)
            begun = await until_frames(first, 2)
        assert text_of(frames(begun + await first.read())) == "a"


# --- cursors --------------------------------------------------------------------------------


@pytest.mark.parametrize("cursor", ["x", "1.0", "-2", "1 2", "٣", "", "9" * 16, "+1"])
async def test_malformed_cursors(web: Any, fake: Any, cursor: str) -> None:
    fake.will_say("a")
    id = (await begin(web)).headers["X-Stream-Id"]
    response = await web.get(f"/v1/streams/{id}", params={"starting_after": cursor})
    assert await error_of(response) == (400, "invalid_value", "starting_after")
    if cursor.isascii() and cursor:
        response = await web.get(f"/v1/streams/{id}", headers={"Last-Event-ID": cursor})
        assert await error_of(response) == (400, "invalid_value", "Last-Event-ID")


async def test_the_query_wins_over_the_header(web: Any, fake: Any) -> None:
    fake.will_say("a", "b")
    first = await begin(web)
    told = frames(await first.read())
    response = await web.get(
        f"/v1/streams/{first.headers['X-Stream-Id']}",
        params={"starting_after": "2"},
        headers={"Last-Event-ID": "x"},
    )
    assert frames(await response.read()) == told[3:]


async def test_future_cursors(web: Any, fake: Any) -> None:
    fake.will_say("a")
    first = await begin(web)
    id, last = first.headers["X-Stream-Id"], frames(await first.read())[-1][0]
    assert await (await read(web, id, last)).read() == b""
    assert await error_of(await read(web, id, last + 1)) == (400, "invalid_value", "starting_after")


async def test_evicted_events(settings: Settings, fake: Any) -> None:
    async with served(settings, fake, max_stream_bytes=8192) as web:
        first = await begin(web, HI | {"max_tokens": 100})
        told = frames(await first.read())
        id = first.headers["X-Stream-Id"]
        for after in (None, 0, 20):
            assert (await error_of(await read(web, id, after)))[:2] == (410, "events_gone")
        last = len(told) - 4
        assert frames(await (await read(web, id, last)).read()) == told[last + 1 :]


async def test_a_reader_that_falls_behind_is_told(settings: Settings, fake: Any) -> None:
    fake = type(fake)(replace(settings.engine, session_len=10**8))
    fake.will_say(*[[FIRST_WORD_ID] * 4000] * 500)  # more than any socket buffer holds
    streams = StreamSettings(max_stream_bytes=64 * 1024)
    async with running_server(replace(settings, streams=streams), fake) as server:
        host, port = server.url.removeprefix("http://").split(":")
        lazy = socket.socket()
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.setblocking(False)
        await asyncio.get_running_loop().sock_connect(lazy, (host, int(port)))
        reader, writer = await asyncio.open_connection(sock=lazy, limit=1024)
        body = orjson.dumps(HI | {"max_tokens": 10**7})
        writer.write(
            b"POST %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Resumable: 1\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (CHAT.encode(), len(body), body)
        )
        await fake.submitted.wait()
        await server.service.drain(30.0)
        stream = await reader.read(-1)
        writer.close()
    assert b"events_gone" in stream[-2000:] and b"[DONE]" not in stream
    numbers = [int(number) for number in re.findall(rb"id: (\d+)\n", stream)]
    assert numbers == list(range(len(numbers))) and len(numbers) < 500


# --- whose ----------------------------------------------------------------------------------


@pytest.mark.parametrize("id", ["strm_0", "resp_0", "x", "%20", "a" * 300])
async def test_no_such_stream(web: Any, id: str) -> None:
    response = await web.get(f"/v1/streams/{id}")
    assert response.status == 404
    assert (await response.json())["error"]["type"] == "not_found_error"


async def test_someone_elses(settings: Settings, fake: Any) -> None:
    ann, bob = ({"Authorization": f"Bearer {key}"} for key in ("ann-key", "bob-key"))
    fake.will_say("a").will_say("b")
    async with served(settings, fake, keys=("ann-key", "bob-key")) as web:
        first = await begin(web, headers=ann | KEY)
        await first.read()
        url = f"/v1/streams/{first.headers['X-Stream-Id']}"
        for after in ("", "?starting_after=0", "?starting_after=99"):
            response = await web.get(url + after, headers=bob)
            assert await error_of(response) == (404, "stream_not_found", None)
        assert (await web.get(url)).status == 401
        assert (await web.get(url, headers=ann)).status == 200
        other = await begin(web, headers=bob | KEY)  # whose key is another
        assert text_of(frames(await other.read())) == "b"


async def test_a_head(web: Any, fake: Any) -> None:
    fake.will_hang("a")
    first = await begin(web)
    url = f"/v1/streams/{first.headers['X-Stream-Id']}"
    response = await web.head(url)
    assert (response.status, response.content_type) == (200, "text/event-stream")
    assert (await web.head(url + "?starting_after=99")).status == 400
    first.close()


# --- idempotency ----------------------------------------------------------------------------


async def test_joining_a_stream(web: Any, fake: Any) -> None:
    fake.will_say(*"abcd")
    rests = pause_at(fake, 2)
    first = await web.post(CHAT, json=HI, headers=KEY)
    begun = await until_frames(first, 3)
    second = await web.post(CHAT, json=HI | {"temperature": None}, headers=KEY)  # the same
    assert second.headers["X-Stream-Id"] == first.headers["X-Stream-Id"]
    first.close()
    await rests.wait()
    fake.resume()
    told = frames(await second.read())
    assert text_of(told) == "abcd" and told[:3] == frames(begun)
    third = await web.post(CHAT, json=HI, headers=KEY)
    assert frames(await third.read()) == told
    assert len(fake.submits) == 1


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_joining_a_whole_answer(web: Any, fake: Any, path: str) -> None:
    body = {"prompt": "hi"} if path == COMPLETIONS else WHOLE
    fake.will_say("Hel", "lo")
    rests = pause_at(fake, 1)
    asking = [asyncio.create_task(web.post(path, json=body, headers=KEY)) for _ in range(3)]
    await fake.submitted.wait()
    asking.pop().cancel()
    await rests.wait()
    fake.resume()
    answers = [await (await each).read() for each in asking]
    answers.append(await (await web.post(path, json=body, headers=KEY)).read())
    assert len(set(answers)) == 1 and b"Hello" in answers[0]
    assert len(fake.submits) == 1


async def test_a_retry_after_the_client_was_cut_off(web: Any, fake: Any) -> None:
    fake.will_say("Hel", "lo")
    rests = pause_at(fake, 1)
    asking = asyncio.create_task(web.post(CHAT, json=WHOLE, headers=KEY))
    await fake.submitted.wait()
    asking.cancel()
    retry = asyncio.create_task(web.post(CHAT, json=WHOLE, headers=KEY))
    await asyncio.wait([asking])
    await rests.wait()
    fake.resume()
    assert (await (await retry).json())["choices"][0]["message"]["content"] == "Hello"
    assert len(fake.submits) == 1 and not fake.aborts


async def test_another_request_with_the_key(web: Any, fake: Any) -> None:
    fake.will_say("a").will_say("b")
    await (await web.post(CHAT, json=HI, headers=KEY)).read()
    for other in (WHOLE, HI | {"temperature": 1}, HI | {"max_tokens": 3}):
        response = await web.post(CHAT, json=other, headers=KEY)
        assert await error_of(response) == (409, "idempotency_key_reused", "Idempotency-Key")
    response = await web.post(COMPLETIONS, json={"prompt": "hi"}, headers=KEY)
    assert (await response.json())["choices"][0]["text"] == "b"


@pytest.mark.parametrize("stream", [False, True])
async def test_what_was_refused_is_not_remembered(web: Any, fake: Any, stream: bool) -> None:
    fake.die()
    body = HI | {"stream": stream}
    refused = await asyncio.gather(*(web.post(CHAT, json=body, headers=KEY) for _ in range(2)))
    assert [response.status for response in refused] == [503, 503]
    assert "Retry-After" in refused[0].headers
    fake.resume()
    fake.will_say("a")
    response = await web.post(CHAT, json=body | {"temperature": 1}, headers=KEY)
    assert response.status == 200 and b'"a"' in await response.read()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_is_told_to_all_who_joined(web: Any, fake: Any, stream: bool) -> None:
    fake.will_fail("out of luck")
    fake.hang()
    body = HI | {"stream": stream}
    asking = [asyncio.create_task(web.post(CHAT, json=body, headers=KEY)) for _ in range(2)]
    await fake.submitted.wait()
    fake.resume()
    for each in asking:
        assert await error_of(await each) == (500, "engine_error", None)
    fake.will_say("a")
    assert (await web.post(CHAT, json=body, headers=KEY)).status == 200


@pytest.mark.parametrize("key", ["", "k" * 256, "é", "a\tb"])
async def test_keys_that_are_none(web: Any, key: str) -> None:
    response = await web.post(CHAT, json=HI, headers={"Idempotency-Key": key})
    assert await error_of(response) == (400, "invalid_value", "Idempotency-Key")


async def test_headers_that_say_nothing(web: Any) -> None:
    response = await web.post(CHAT, json=HI, headers={"X-Resumable": "yes please"})
    assert await error_of(response) == (400, "invalid_value", "X-Resumable")


async def test_a_long_request_with_a_key(settings: Settings, fake: Any) -> None:
    fake = type(fake)(replace(settings.engine, session_len=100_000))
    fake.will_say("a")
    body = {"prompt": "x" * 40_000}
    async with served(settings, fake) as web:
        answers = [await (await web.post(COMPLETIONS, json=body, headers=KEY)).read() for _ in "12"]
    assert answers[0] == answers[1] and len(fake.submits) == 1
