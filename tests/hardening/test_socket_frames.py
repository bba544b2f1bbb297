"""WebSockets spoken badly, or not at all, to a real server: each loses its own connection alone."""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import orjson
import pytest
from aiohttp import WSCloseCode

from lmserve.bridge.fake import FakeEngine
from lmserve.edge.connections import Connections
from lmserve.edge.socket.arriving import Arriving
from tests.hardening.real import RealServer, real_server, settings_for
from tests.server.sockets import PATH, connected

TEXT, BINARY, CLOSE, PING, PONG, MORE = 1, 2, 8, 9, 10, 0
FINAL, MASKED = 0x80, 0x80
WRONG, BIG = WSCloseCode.PROTOCOL_ERROR, WSCloseCode.MESSAGE_TOO_BIG
LIST = b'{"type":"session.list","event_id":"1"}'


def frame(opcode: int, payload: bytes = b"", *, final: bool = True, announced: int = -1) -> bytes:
    size = len(payload) if announced < 0 else announced
    head = bytes([opcode | FINAL * final])
    if size < 126:
        head += bytes([MASKED | size])
    elif size < 2**16:
        head += bytes([MASKED | 126]) + size.to_bytes(2, "big")
    else:
        head += bytes([MASKED | 127]) + size.to_bytes(8, "big")
    return head + bytes(4) + payload


@dataclass
class Upgraded:
    """A connection of which this speaks the frames itself."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, *frames: bytes) -> None:
        self.writer.write(b"".join(frames))

    async def receive(self) -> tuple[int, bytes]:
        """Opcode and payload of the next; CLOSE where it has ended."""
        try:
            async with asyncio.timeout(30):
                first, size = await self.reader.readexactly(2)
                if size >= 126:
                    size = int.from_bytes(await self.reader.readexactly(2 if size == 126 else 8))
                return first & 15, await self.reader.readexactly(size)
        except (asyncio.IncompleteReadError, ConnectionResetError):
            return CLOSE, b""

    async def closed(self) -> int:
        """The code; 0 where none came."""
        while (received := await self.receive())[0] != CLOSE:
            pass
        return int.from_bytes(received[1][:2])


@asynccontextmanager
async def upgraded(real: RealServer) -> AsyncIterator[Upgraded]:
    reader, writer = await asyncio.open_connection("127.0.0.1", real.port)
    writer.write(
        f"GET {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n".encode()
    )
    try:
        assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
        yield Upgraded(reader, writer)
    finally:
        writer.close()


BROKEN = {
    "a gigabyte announced": (frame(TEXT, announced=2**30), BIG),
    "all there can be": (frame(TEXT, announced=2**63 - 1), BIG),
    "more than that": (frame(TEXT, announced=2**64 - 1), BIG),
    "a gigabyte of a fragment": (frame(TEXT, b"{", final=False) + frame(0, announced=2**30), BIG),
    "nothing to go on with": (frame(MORE, b"x"), WRONG),
    "a message in another": (frame(TEXT, b"{", final=False) + frame(TEXT, b"{}"), WRONG),
    "an opcode nobody knows": (frame(3, b"x"), WRONG),
    "a control nobody knows": (frame(11, b"x"), WRONG),
    "a bit for compression": (bytes([0xC1, 0x82]) + bytes(4) + b"{}", WRONG),
    "another bit": (bytes([0x91, 0x82]) + bytes(4) + b"{}", WRONG),
    "a ping too long": (frame(PING, b"x" * 126), WRONG),
    "half a ping": (frame(PING, b"x", final=False), WRONG),
    "half a code": (frame(CLOSE, b"x"), WRONG),
    "a code that is none": (frame(CLOSE, b"\x00\x07"), WRONG),
    "HTTP again": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", WRONG),
}


async def test_frames_that_are_none_end_their_connection(real: RealServer) -> None:
    async def one(what: str, data: bytes, code: int) -> None:
        async with upgraded(real) as socket:
            socket.send(data, frame(TEXT, LIST))
            assert await socket.closed() == code, what

    await asyncio.gather(*(one(what, data, code) for what, (data, code) in BROKEN.items()))


async def test_noise(real: RealServer) -> None:
    async def one(seed: int) -> None:
        async with upgraded(real) as socket:
            socket.send(random.Random(seed).randbytes(3000), frame(CLOSE, b"\x03\xe8"))
            socket.writer.write_eof()
            await socket.closed()

    await asyncio.gather(*map(one, range(20)))


NO_EVENTS = (
    (TEXT, b'{"type":"\xff\xfe"}'),
    (TEXT, b"\xed\xa0\x80"),
    (TEXT, b'{"type":"\\ud800"}'),
    (TEXT, b"\xef\xbb\xbf" + LIST),
    (TEXT, b""),
    (TEXT, b"[" * 100_000),
    (TEXT, b'{"type":' * 30_000),
    (TEXT, b'{"type":"session.list","x":[' + b"{}," * 200_000 + b"{}]}"),
    (BINARY, LIST),
    (BINARY, b""),
)


async def test_messages_that_are_no_event_are_each_told(real: RealServer) -> None:
    async with upgraded(real) as socket:
        for opcode, payload in NO_EVENTS:
            socket.send(frame(opcode, payload))
            kind, told = await socket.receive()
            assert (kind, orjson.loads(told)["status"]) == (TEXT, 400), payload[:20]
        pieces = [frame(TEXT if at == 0 else MORE, LIST[at : at + 1], final=False)
                  for at in range(len(LIST))]  # fmt: skip
        socket.send(frame(PING, b"?").join(pieces), frame(MORE))
        answers = [await socket.receive() for _ in range(len(LIST))]
        assert answers[:-1] == [(PONG, b"?")] * (len(LIST) - 1)
        assert orjson.loads(answers[-1][1])["event_id"] == "1"


async def test_a_flood_of_pings_whose_answers_nobody_reads(real: RealServer) -> None:
    async with upgraded(real) as socket, upgraded(real) as other:
        socket.send(frame(PING, b"x" * 125) * 60_000)
        other.send(frame(TEXT, LIST))
        assert orjson.loads((await other.receive())[1])["event_id"] == "1"
        socket.writer.transport.abort()


async def test_messages_that_never_end(real: RealServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have a limit together; those who leave give back what they had."""
    connections = _connections(real)
    monkeypatch.setattr(connections, "MAX_ARRIVING_BYTES", 2**20)

    async def arriving() -> int:
        """Asked there: what comes is counted before it is found to be too much."""
        return connections.arriving_bytes

    begun = frame(TEXT, b'"', final=False) + frame(MORE, b"x" * 300_000, final=False)
    cut = frame(TEXT, b"x" * 300_000, announced=2**20)
    async with AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(upgraded(real)) for _ in range(6)]
        for index, socket in enumerate(sockets):
            socket.send(begun if index % 2 else cut)
        done, rest = await asyncio.wait(
            [asyncio.create_task(socket.closed()) for socket in sockets],
            return_when=asyncio.FIRST_COMPLETED,
            timeout=30,
        )
        assert done and rest
        assert {task.result() for task in done} == {0}
        assert await real.inside(arriving) <= 2**20
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
    async with asyncio.timeout(20):
        while connections.arriving_bytes:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_messages_that_come_too_slowly(tmp_path: Path) -> None:
    """Their connection ends; one that says nothing, or all of it, goes on."""
    settings = settings_for(tmp_path, tmp_path, limits={"body_timeout_s": 0.2})
    with real_server(settings, FakeEngine) as real:
        async with upgraded(real) as slow, upgraded(real) as much, upgraded(real) as idle:
            slow.send(frame(TEXT, b"{", final=False), frame(PING))
            assert await slow.closed() == 0
            much.send(frame(TEXT, b"x" * 300_000, final=False))  # and no more of it
            assert await much.closed() == 0
            idle.send(frame(TEXT, LIST))
            assert orjson.loads((await idle.receive())[1])["event_id"] == "1"


@pytest.mark.parametrize(
    "bits", [[frame(PONG)[:3], frame(PONG)[3:]], [b"x"]], ids=["halves of pongs", "single bytes"]
)
async def test_what_is_sent_to_look_busy(tmp_path: Path, bits: list[bytes]) -> None:
    """Much has come at once, which helps nobody who then sends next to nothing."""
    settings = settings_for(tmp_path, tmp_path, limits={"body_timeout_s": 0.3})
    with real_server(settings, FakeEngine) as real:
        async with upgraded(real) as socket:
            socket.send(frame(TEXT, b"x" * 300_000, final=False))
            if bits == [b"x"]:
                socket.send(frame(MORE, announced=300_000))
            closed = asyncio.create_task(socket.closed())
            for bit in itertools.cycle(bits):
                if closed.done():
                    break
                socket.send(bit)
                await asyncio.wait({closed}, timeout=0.02)
            assert await closed == 0


def _connections(real: RealServer) -> Connections:
    """That the server listens with."""
    mine = [each for each in gc.get_objects() if type(each) is Connections]
    (found,) = (each for each in mine if each._loop is real.loop)
    return found


def test_what_is_not_whole_is_known_however_it_is_cut() -> None:
    frames = [
        frame(TEXT, b"a", final=False), frame(PING, b"x" * 9), frame(MORE, b"b" * 200, final=False),
        frame(PONG), frame(MORE, b"c"), frame(BINARY, b"d" * 70_000), frame(TEXT, b"", final=False),
    ]  # fmt: skip
    data = b"".join(frames)
    source = random.Random(1)
    for _ in range(30):
        arriving, at = Arriving(), 0
        while at < len(data):
            size = source.choice((1, 2, 7, 5000, 10**6))
            arriving.feed(data[at : at + size])
            at += size
        assert (arriving.num_messages, arriving.num_bytes) == (2, len(frames[-1]))


@pytest.mark.parametrize("num", [250, pytest.param(1000, marks=pytest.mark.slow)])
async def test_idle_sockets(real: RealServer, http: aiohttp.ClientSession, num: int) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(num):
            await stack.enter_async_context(upgraded(real))
        assert (await real.held())["sockets"] == num
        async with http.get("/health") as health:
            assert health.status == 200


async def test_a_storm_of_creates(real: RealServer) -> None:
    """Each is answered, or told why not, once."""
    create = {"type": "response.create", "input": "hi", "max_output_tokens": 2, "store": False}
    asked = {f"e{n}": create | {"event_id": f"e{n}", "stream_id": f"s{n % 40}"} for n in range(160)}
    async with upgraded(real) as socket:
        socket.send(*(frame(TEXT, orjson.dumps(event)) for event in asked.values()))
        ended, refused = 0, 0
        while ended + refused < len(asked):
            kind, told = await socket.receive()
            assert kind == TEXT, told
            event = orjson.loads(told)
            if event["type"] == "error":
                assert event["status"] == 429 and asked.pop(event["event_id"])
                asked[f"refused {refused}"] = {}
                refused += 1
            ended += event["type"] in ("response.completed", "response.incomplete")
        assert ended >= 32  # how many are refused is a matter of who is faster


async def test_what_has_ended_is_cancelled_and_changed_in_vain(
    http: aiohttp.ClientSession,
) -> None:
    async with connected(http) as socket:
        await socket.send("response.create", input="hi", max_output_tokens=2)
        events = await socket.until("response.completed", "response.incomplete")
        id = events[0]["response"]["id"]
        for _ in range(3):
            cancelled = await socket.call("session.cancel", response_id=id)
            assert cancelled["status"] == events[-1]["response"]["status"]
        told = await socket.error("session.update", response_id=id, max_output_tokens=9)
        assert told["status"] == 409
        await socket.send("response.steer", previous_response_id=id, input="no")
        assert (await socket.receive())["type"] == "response.steer.failed"
        await socket.error("session.cancel", response_id="resp_none")
    session = events[0]["response"]["session"]
    assert (await http.delete(f"/v1/sessions/{session}")).status == 200


async def test_a_peer_that_never_reads_loses_nothing_of_others(real: RealServer) -> None:
    create = {"type": "response.create", "input": "hi", "max_output_tokens": 40, "store": False}
    asked = [create | {"stream_id": f"s{n}"} for n in range(30)]
    async with upgraded(real) as socket, upgraded(real) as other:
        socket.send(*(frame(TEXT, orjson.dumps(event)) for event in asked))
        other.send(frame(TEXT, LIST))
        assert orjson.loads((await other.receive())[1])["event_id"] == "1"
        socket.writer.transport.abort()


ORIGINS = ("null", "http://elsewhere.example", "http://127.0.0.1", "https://127.0.0.1:1", "file://")


async def test_pages_from_elsewhere(http: aiohttp.ClientSession) -> None:
    for origin in ORIGINS:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await http.ws_connect(PATH, headers={"Origin": origin})
        assert refused.value.status == 403, origin
