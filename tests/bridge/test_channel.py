"""Frames: whole whatever the cuts, bounded, and refused when they are not ours."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from typing import TYPE_CHECKING

import msgspec
import pytest

from lmserve.bridge import channel as channel_module
from lmserve.bridge.channel import (
    ChannelError,
    EngineChannel,
    FrameReader,
    ServerChannel,
    ServerGone,
    encode_frame,
    encode_frames,
)
from lmserve.messages import Abort, Control, Loading, Submit, ToServer, pack_ids
from lmserve.sampling import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    server, engine = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with server, engine:
        yield server, engine


@pytest.fixture
def channel(pair: tuple[socket.socket, socket.socket]) -> Iterator[EngineChannel]:
    made = EngineChannel(pair[1])
    yield made
    made.close()


@pytest.mark.parametrize("size", [1, 3, 4, 5, 1000])
def test_frames_survive_any_cut(size: int) -> None:
    stream = b"".join(encode_frame(["x" * length]) for length in (0, 1, 200, 7))
    reader = FrameReader()
    bodies = [
        body
        for start in range(0, len(stream), size)
        for body in reader.feed(stream[start : start + size])
    ]
    assert [len(msgspec.msgpack.decode(body)[0]) for body in bodies] == [0, 1, 200, 7]


def test_a_frame_too_long_is_refused() -> None:
    with pytest.raises(ChannelError, match="not a frame of ours"):
        list(FrameReader().feed(b"GET / HTTP/1.1"))


def test_messages_too_many_for_a_frame_go_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "MAX_FRAME_BYTES", 100)
    frames = encode_frames([Loading("x" * 60), Loading("y" * 60), Loading("z")])
    assert len(frames) == 2
    with pytest.raises(ChannelError, match="over the limit"):
        encode_frames([Loading("x" * 101)])


def test_the_engine_drains_without_blocking(
    pair: tuple[socket.socket, socket.socket], channel: EngineChannel
) -> None:
    server, _ = pair
    assert channel.receive(block=False) == []
    sent = [Submit(1, pack_ids([1, 2]), SamplingParams()), Abort([1])]
    frame = encode_frame(sent)
    server.sendall(frame[:9])
    assert channel.receive(block=False) == []
    server.sendall(frame[9:] + encode_frame([Control(3, "ping")]))
    assert channel.receive(block=True) == [*sent, Control(3, "ping")]
    server.close()
    with pytest.raises(ServerGone):
        channel.receive(block=True)
    with pytest.raises(ServerGone):
        channel.send([Loading("too late")])


def test_the_engine_keeps_what_came_with_the_first_frame(
    pair: tuple[socket.socket, socket.socket], channel: EngineChannel
) -> None:
    pair[0].sendall(encode_frame({"a": 1}) + encode_frame([Abort([5])]))
    assert channel.receive_first(dict) == {"a": 1}
    assert channel.receive(block=False) == [Abort([5])]


def test_a_wake_ends_one_wait(
    pair: tuple[socket.socket, socket.socket], channel: EngineChannel
) -> None:
    thread = threading.Thread(target=channel.wake)
    thread.start()
    assert channel.receive(block=True) == []
    thread.join()
    for _ in range(1000):  # more than are kept
        channel.wake()
    assert channel.receive(block=False) == []
    assert channel.receive(block=True) == []
    pair[0].sendall(encode_frame([Abort([5])]))
    assert channel.receive(block=True) == [Abort([5])]
    channel.close()
    channel.wake()


def test_the_engine_refuses_nonsense(
    pair: tuple[socket.socket, socket.socket], channel: EngineChannel
) -> None:
    pair[0].sendall(encode_frame([["submit", "not a number"]]))
    with pytest.raises(ChannelError, match="malformed frame"):
        channel.receive(block=True)


async def test_messages_of_a_turn_leave_as_one_frame(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    server, engine = pair
    channel = await ServerChannel.connect(server, lambda messages: None, first="boot")
    for rid in range(3):
        channel.send(Abort([rid]))
    raw = await asyncio.to_thread(_read_frames, engine, 2)
    assert msgspec.msgpack.decode(raw[0]) == "boot"
    assert msgspec.msgpack.decode(raw[1], type=list[Abort]) == [Abort([0]), Abort([1]), Abort([2])]
    channel.close()
    await channel.closed
    channel.send(Abort([4]))  # dropped, not raised: the supervisor is about to hear of the end


def _read_frames(sock: socket.socket, num: int) -> list[bytearray]:
    reader, bodies = FrameReader(), []
    while len(bodies) < num:
        bodies += reader.feed(sock.recv(4096))
    return bodies


@pytest.mark.parametrize("frame", [encode_frame([["sing", 1]]), b"\xff" * 8])
async def test_nonsense_from_the_engine_closes_the_channel(
    pair: tuple[socket.socket, socket.socket], caplog: pytest.LogCaptureFixture, frame: bytes
) -> None:
    server, engine = pair
    heard: list[ToServer] = []
    channel = await ServerChannel.connect(server, heard.extend, first="boot")
    engine.sendall(encode_frame([Loading("one")]))
    engine.sendall(frame)
    with caplog.at_level(logging.ERROR):
        await channel.closed
    assert heard == [Loading("one")]
    assert "its channel is closed" in caplog.text
