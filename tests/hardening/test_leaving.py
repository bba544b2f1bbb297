"""Clients that leave at every point of a request, from a real engine: nothing stays behind."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from lmserve.server import keys
from lmserve.service.store.rows import SessionKey
from tests.hardening.doors import DOORS, USER, Door
from tests.hardening.real import RealServer
from tests.server.pipes import asking, leave
from tests.server.sockets import connected

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
CLOSE = "Connection: close\r\n"
MARK = 37  # max_tokens of what a test itself asks for
ANSWERING = [door for door in DOORS if "max_tokens" in door.names]
HTTP = [door for door in ANSWERING if not door.socket]


async def become(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


def num_marked(real: RealServer, begun: bool | None = None) -> int:
    """Answers asked for here, that run or wait; the neighbours' are none."""
    generations = list(real.app[keys.SERVICE]._generations.items())
    return sum(
        generation.sampling.max_tokens == MARK and (begun is None or place.begun == begun)
        for generation, place in generations
    )


def marked(door: Door, *, stream: bool) -> Any:
    body = orjson.loads(door.with_thing("max_tokens", str(MARK)))
    if "stream" in door.names and not door.socket:
        body["stream"] = stream
    return body


@asynccontextmanager
async def frozen(real: RealServer) -> AsyncIterator[None]:
    """The engine's process does nothing meanwhile."""
    info = real.handle.info
    assert info is not None
    status = Path(f"/proc/{info.pid}/stat")
    os.kill(info.pid, signal.SIGSTOP)
    try:
        await become(lambda: status.read_text().rpartition(")")[2].split()[0] == "T")
        yield
    finally:
        os.kill(info.pid, signal.SIGCONT)


@asynccontextmanager
async def all_asked(real: RealServer, *, stream: bool) -> AsyncIterator[list[Callable[[], None]]]:
    """One on every route and transport; what ends each connection."""
    async with AsyncExitStack() as stack:
        ends: list[Callable[[], None]] = []
        for index, door in enumerate(HTTP):
            asked = asking(real, door.path, marked(door, stream=stream))
            _, writer = await stack.enter_async_context(asked)
            ends.append(lambda writer=writer, odd=index % 2: leave(writer, rudely=bool(odd)))
        web = await stack.enter_async_context(aiohttp.ClientSession(real.url))
        for door in (door for door in ANSWERING if door.socket):
            socket = await stack.enter_async_context(connected(web))
            await socket.raw(door.with_thing("max_tokens", str(MARK)))
            ends.append(socket.ws._response.connection.transport.abort)
        yield ends


@pytest.fixture(autouse=True)
async def session(http: aiohttp.ClientSession) -> AsyncIterator[None]:
    """That some doors name."""
    await http.post("/v1/sessions", json={"id": "hardened"})
    yield
    await http.delete("/v1/sessions/hardened")


@pytest.mark.parametrize("stream", [False, True])
async def test_before_the_engine_has_heard_of_it(real: RealServer, stream: bool) -> None:
    async with frozen(real):
        async with all_asked(real, stream=stream) as ends:
            await become(lambda: num_marked(real) == len(ANSWERING))
            for end in ends:
                end()
            await become(lambda: num_marked(real) == 0)


async def test_in_the_engines_queue(real: RealServer) -> None:
    """The pool has room for six of these."""
    body = {"ignore_eos": True, "max_tokens": MARK}
    async with AsyncExitStack() as stack:
        writers = []
        async with frozen(real):
            for index in range(30):
                prompt = {"prompt": f"{index:03} " * 115, "stream": index % 3 == 0}
                asked = asking(real, COMPLETIONS, body | prompt)
                writers.append((await stack.enter_async_context(asked))[1])
            await become(lambda: num_marked(real) == 30)
        await become(lambda: num_marked(real, begun=True) > 0)
        assert num_marked(real, begun=False) > 0
        for index, writer in enumerate(writers):
            leave(writer, rudely=index % 2 == 0)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_amid_the_prefill(real: RealServer, path: str) -> None:
    async def left_at(index: int) -> int:
        """With so much still to run, as far as was told."""
        prompt = f"{index:03} " * 220
        what = {"messages": [{"role": "user", "content": prompt}]}
        body = {"stream": True, "return_progress": True, "max_tokens": MARK}
        body |= {"prompt": prompt} if path == COMPLETIONS else what
        async with asking(real, path, body, CLOSE) as (reader, writer):
            event = await reader.readuntil(b"\n\n")
            while b"prompt_progress" not in event:
                event = await reader.readuntil(b"\n\n")
            leave(writer, rudely=index % 2 == 0)
            progress = orjson.loads(event[event.index(b"{") :])["prompt_progress"]
            return int(progress["total"] - progress["processed"])

    assert max(await asyncio.gather(*map(left_at, range(6)))) > 0


async def test_at_the_first_token(real: RealServer) -> None:
    async def one(index: int, door: Door) -> None:
        async with asking(real, door.path, marked(door, stream=True), CLOSE) as (reader, writer):
            assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
            await reader.readuntil(b"\n")
            leave(writer, rudely=index % 2 == 0)

    await asyncio.gather(*(one(index, door) for index, door in enumerate(HTTP)))


async def test_amid_a_call(real: RealServer) -> None:
    parameters = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    function = {"name": "f", "parameters": parameters}
    chat = {"messages": [USER], "tools": [{"type": "function", "function": function}]}
    responses = {"input": "hi", "tools": [{"type": "function", **function}]}
    for path, body, mark in (
        (CHAT, chat, b'"arguments"'),
        (RESPONSES, responses, b"response.function_call_arguments.delta"),
    ):
        body |= {"tool_choice": "required", "stream": True}
        async with asking(real, path, body, CLOSE) as (reader, writer):
            await reader.readuntil(mark)
            leave(writer, rudely=True)


async def test_while_a_grammar_is_compiled(real: RealServer) -> None:
    """Each is new, so that it is compiled for it, here and in the engine."""

    async def one(index: int) -> None:
        names = [f"p{index}_{number}" for number in range(300)]
        schema = {"type": "object", "properties": {name: {"type": "string"} for name in names}}
        body = {"prompt": "hi", "guided_json": schema, "max_tokens": MARK, "stream": True}
        async with asking(real, COMPLETIONS, body) as (_, writer):
            await writer.drain()
            if index % 2:
                await asyncio.sleep(0.003 * index)
            leave(writer, rudely=index % 3 == 0)

    await asyncio.gather(*map(one, range(12)))


# --- between what is asked and what is kept -----------------------------------------------


@asynccontextmanager
async def full_desk(real: RealServer) -> AsyncIterator[Callable[[int], Any]]:
    """The thread that writes has so much to do that nothing else is kept; what waits until so many
    wait for it."""
    keeper, gate = real.app[keys.SESSIONS].keeper, threading.Event()

    async def hold() -> None:
        keeper.run(lambda _: gate.wait(30))

    await real.inside(hold)
    queue = keeper._thread._work_queue
    try:
        yield lambda num: become(lambda: queue.qsize() >= num)
    finally:
        gate.set()


WRITES: dict[str, tuple[str, Any]] = {
    "fork": ("/v1/sessions/root/fork", {"id": "forked"}),
    "append": ("/v1/sessions/root/messages", {"messages": [USER]}),
    "import": (
        "/v1/sessions/import",
        {"id": "came", "session": {"format": "lmserve.session", "version": 1, "messages": []}},
    ),
    "create": ("/v1/sessions", {"id": "made", "messages": [USER]}),
    "turn": ("/v1/sessions/root/turns", {"input": "hi", "max_output_tokens": MARK}),
    "response": (RESPONSES, {"input": "hi", "max_output_tokens": MARK}),
    "interactive": (
        "/v1/chat/interactive",
        {"prompt": "hi", "session_id": 4, "interactive_mode": True, "request_output_len": MARK},
    ),
}


async def test_between_what_is_asked_and_what_is_kept(
    real: RealServer, http: aiohttp.ClientSession
) -> None:
    await http.post("/v1/sessions", json={"id": "root", "messages": [USER]})
    async with AsyncExitStack() as stack:
        async with full_desk(real) as waiting:
            for index, (path, body) in enumerate(WRITES.values()):
                _, writer = await stack.enter_async_context(asking(real, path, body))
                await waiting(index // 2)
                await asyncio.sleep(0.01)
                leave(writer, rudely=index % 2 == 0)
    for id in ("root", "forked", "came", "made", "4"):
        async with http.get(f"/v1/sessions/{id}/messages?tree=true") as response:
            assert response.status in (200, 404)
            if response.status == 200:  # wholly there
                messages = (await response.json())["data"]
                assert all(m["content"] == "hi" for m in messages if m["role"] == "user")
        async with http.delete(f"/v1/sessions/{id}") as response:
            assert response.status in (200, 404)


async def test_during_a_draft(real: RealServer, http: aiohttp.ClientSession) -> None:
    await http.post("/v1/sessions", json={"id": "drafting", "messages": [USER]})
    path, draft = "/v1/sessions/drafting/draft", {"text": "and then " * 45}
    async with frozen(real):
        async with asking(real, path, draft) as (_, writer):
            await become(lambda: bool(real.app[keys.DRAFTS]._drafts))
            leave(writer, rudely=True)
        async with connected(http) as socket:
            await socket.send("session.draft", session="drafting", text="and so " * 50)
            await socket.until("session.draft.done")
            socket.ws._response.connection.transport.abort()
    async with http.delete("/v1/sessions/drafting") as response:
        assert response.status == 200
    await become(lambda: not real.app[keys.DRAFTS]._drafts)


async def test_while_kv_is_read_from_disk(real: RealServer, http: aiohttp.ClientSession) -> None:
    warmth = real.app[keys.WARMTH]
    turn = {"input": "a story " * 30, "max_output_tokens": 8}
    async with http.post(RESPONSES, json=turn) as response:
        first = await response.json()
        assert response.status == 200, first
    key = SessionKey("", first["session"])

    async def only_on_disk() -> None:
        await warmth.write_all()
        assert warmth._spill.has(key)
        del warmth._warm[key]
        await warmth._unpin(key)
        await real.handle.control("clear_cache")

    await real.inside(only_on_disk)
    body = {"input": "on", "previous_response_id": first["id"], "max_output_tokens": MARK}
    async with frozen(real):
        async with asking(real, RESPONSES, body) as (_, writer):
            await become(lambda: key in warmth._restores)
            leave(writer, rudely=True)
    await become(lambda: not warmth._restores)
    async with http.post(RESPONSES, json=body) as response:
        assert response.status == 200, await response.read()
    await http.delete(f"/v1/sessions/{first['session']}")


# --- files and batches --------------------------------------------------------------------


def lines(num: int) -> bytes:
    asked = {"prompt": "hi", "max_tokens": 4}
    return b"\n".join(
        orjson.dumps({"custom_id": str(n), "method": "POST", "url": COMPLETIONS, "body": asked})
        for n in range(num)
    )


def form(data: bytes) -> bytes:
    part = b'--x\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n'
    return (
        part % (b"purpose", b"", b"batch")
        + part % (b"file", b'; filename="a"', data)
        + b"--x--\r\n"
    )


async def test_amid_an_upload(real: RealServer) -> None:
    settings = real.app[keys.SETTINGS]
    folder = Path(settings.sessions.data_dir or "") / "files"
    before = sorted(folder.rglob("*"))
    whole = form(lines(2000))
    for index, size in enumerate((1, 60, 150, 70_000, len(whole) - 3)):
        head = "Content-Type: multipart/form-data; boundary=x\r\n"
        size_head = f"Content-Length: {len(whole)}\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", real.port)
        request = f"POST /v1/files HTTP/1.1\r\nHost: x\r\n{head}{size_head}\r\n"
        writer.write(request.encode() + whole[:size])
        await writer.drain()
        leave(writer, rudely=index % 2 == 0)
        await reader.read() if index % 2 else None
    await become(lambda: sorted(folder.rglob("*")) == before)


async def test_once_a_batch_is_asked_for(real: RealServer, http: aiohttp.ClientSession) -> None:
    """Who asked for it need not stay."""
    data = aiohttp.FormData({"purpose": "batch"})
    data.add_field("file", lines(12), filename="a.jsonl")
    async with http.post("/v1/files", data=data) as response:
        file = (await response.json())["id"]
    body = {"input_file_id": file, "endpoint": COMPLETIONS, "completion_window": "24h"}
    async with asking(real, "/v1/batches", body, CLOSE) as (reader, writer):
        await reader.readuntil(b" 200 ")
        leave(writer, rudely=True)
    async with asyncio.timeout(30):
        while True:
            async with http.get("/v1/batches") as response:
                batches = (await response.json())["data"]
            (batch,) = (each for each in batches if each["input_file_id"] == file)
            if batch["status"] == "completed":
                break
            await asyncio.sleep(0.02)
    assert batch["request_counts"] == {"total": 12, "completed": 12, "failed": 0}
    for id in (file, batch["output_file_id"]):
        assert (await http.delete(f"/v1/files/{id}")).status == 200


# --- many ---------------------------------------------------------------------------------


async def leave_at_random(real: RealServer, seed: int) -> None:
    source = random.Random(seed)
    door = source.choice(HTTP)
    body = marked(door, stream=source.random() < 0.7)
    async with asking(real, door.path, body) as (reader, writer):
        try:
            async with asyncio.timeout(source.expovariate(4)):
                for _ in range(source.randrange(40)):
                    await reader.read(100)
        except TimeoutError:
            pass
        leave(writer, rudely=source.random() < 0.5)


@pytest.mark.parametrize("num", [60, pytest.param(1000, marks=pytest.mark.slow)])
async def test_many_at_once(real: RealServer, num: int) -> None:
    await asyncio.gather(*(leave_at_random(real, seed) for seed in range(num)))


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
async def test_a_storm_of_retries(real: RealServer, http: aiohttp.ClientSession, path: str) -> None:
    """Each gives up before it is answered, and asks again: one answer is made."""
    asked = {"max_tokens": MARK, "messages": [USER]}
    if path == RESPONSES:
        asked = {"max_output_tokens": MARK, "input": "hi"}
    head = {"Idempotency-Key": f"storm-{path}"}
    async with frozen(real):
        async with AsyncExitStack() as stack:
            for _ in range(40):
                one = asking(real, path, asked, f"Idempotency-Key: {head['Idempotency-Key']}\r\n")
                _, writer = await stack.enter_async_context(one)
                await become(lambda: num_marked(real) == 1)
                leave(writer, rudely=True)
    async with http.post(path, json=asked, headers=head) as response:
        assert response.status == 200, await response.read()
