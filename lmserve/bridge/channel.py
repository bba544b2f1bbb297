"""Frames over the socketpair between server and engine.

A frame is a 4-byte little-endian length and a msgpack list of messages: `list[ToEngine]` one
way, `list[ToServer]` the other. The engine's end blocks and knows no asyncio; the server's end
is an asyncio protocol that sends all messages of one loop turn as one frame. A frame that is
too long or does not decode closes the channel: the two sides no longer agree on anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import select
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar, cast

import msgspec

from lmserve.messages import ToEngine, ToServer

logger = logging.getLogger(__name__)

MAX_FRAME_BYTES = 64 * 2**20
_HEADER_BYTES = 4
_READ_BYTES = 256 * 2**10

_encoder = msgspec.msgpack.Encoder()
_to_engine = msgspec.msgpack.Decoder(list[ToEngine])
_to_server = msgspec.msgpack.Decoder(list[ToServer])

T = TypeVar("T")


class ChannelError(Exception):
    """The other side sent something that is not a frame of messages."""


class ServerGone(Exception):
    """The server closed its end, or its process ended."""


def encode_frame(body: object) -> bytearray:
    frame = bytearray(_HEADER_BYTES)
    _encoder.encode_into(body, frame, _HEADER_BYTES)
    num_bytes = len(frame) - _HEADER_BYTES
    if num_bytes > MAX_FRAME_BYTES:
        raise ChannelError(f"a frame of {num_bytes} bytes is over the limit of {MAX_FRAME_BYTES}")
    frame[:_HEADER_BYTES] = num_bytes.to_bytes(_HEADER_BYTES, "little")
    return frame


def encode_frames(messages: Sequence[object]) -> list[bytearray]:
    """One frame, or several where the messages together are over the limit."""
    try:
        return [encode_frame(messages)]
    except ChannelError:
        if len(messages) < 2:
            raise
    half = len(messages) // 2
    return encode_frames(messages[:half]) + encode_frames(messages[half:])


def _decode(decoder: msgspec.msgpack.Decoder[T], body: bytes | bytearray) -> T:
    try:
        return decoder.decode(body)
    except msgspec.DecodeError as error:
        raise ChannelError(f"a malformed frame of {len(body)} bytes: {error}") from None


class FrameReader:
    """Cuts a stream of bytes into the bodies of frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytearray]:
        """The frames that `data` completes; consume all."""
        buffer = self._buffer
        buffer += data
        while len(buffer) >= _HEADER_BYTES:
            num_bytes = int.from_bytes(buffer[:_HEADER_BYTES], "little")
            if num_bytes > MAX_FRAME_BYTES:
                raise ChannelError(f"a frame says it has {num_bytes} bytes: not a frame of ours")
            end = _HEADER_BYTES + num_bytes
            if len(buffer) < end:
                break
            body = buffer[_HEADER_BYTES:end]
            del buffer[:end]
            yield body


class EngineChannel:
    """The engine's end: blocking, used by one thread. Owns the socket."""

    def __init__(self, sock: socket.socket):
        sock.setblocking(True)
        self._sock = sock
        self._reader = FrameReader()
        self._bodies: list[bytearray] = []  # frames read together with one asked for alone
        self._woken, self._waker = socket.socketpair()
        for end in (self._woken, self._waker):
            end.setblocking(False)
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._poll.register(self._woken, select.POLLIN)

    def receive_first(self, as_type: type[T]) -> T:
        """Waits for the first frame, which is no list of messages but one `as_type`."""
        while not self._bodies:
            self._bodies = self._read(0)
        return _decode(msgspec.msgpack.Decoder(as_type), self._bodies.pop(0))

    def receive(self, *, block: bool) -> list[ToEngine]:
        """All messages that have arrived; with `block`, waits until there are some, or until
        woken.

        Raises ServerGone when the other end is closed."""
        bodies, self._bodies = self._bodies, []
        if not bodies:
            bodies = self._wait() if block else self._read(socket.MSG_DONTWAIT)
        return [message for body in bodies for message in _decode(_to_engine, body)]

    def wake(self) -> None:
        """Ends the wait of `receive`, or the next one's. From any thread, at any time."""
        with contextlib.suppress(OSError):  # full, and so awake already; or closed
            self._waker.send(b"w")

    def _wait(self) -> list[bytearray]:
        while True:
            self._poll.poll()
            woken = self._was_woken()
            bodies = self._read(socket.MSG_DONTWAIT)
            if bodies or woken:  # neither: the read brought a part of a frame
                return bodies

    def _was_woken(self) -> bool:
        try:
            return bool(self._woken.recv(4096))
        except BlockingIOError:
            return False

    def _read(self, flags: int) -> list[bytearray]:
        try:
            data = self._sock.recv(_READ_BYTES, flags)
        except BlockingIOError:
            return []
        except OSError as error:
            raise ServerGone from error
        if not data:
            raise ServerGone
        return list(self._reader.feed(data))

    def send(self, messages: Sequence[ToServer]) -> None:
        """Sends one frame; blocks while the server is behind by a socket buffer."""
        try:
            for frame in encode_frames(messages):
                self._sock.sendall(frame)
        except OSError as error:
            raise ServerGone from error

    def close(self) -> None:
        for sock in (self._sock, self._woken, self._waker):
            sock.close()


class ServerChannel(asyncio.Protocol):
    """The server's end: `on_messages` gets each frame, `closed` resolves when the engine is
    gone or has sent nonsense. Used on its loop only."""

    def __init__(self, on_messages: Callable[[list[ToServer]], None]):
        self._loop = asyncio.get_running_loop()
        self._on_messages = on_messages
        self._reader = FrameReader()
        self._outbox: list[ToEngine] = []
        self._transport: asyncio.Transport | None = None
        self.closed: asyncio.Future[None] = self._loop.create_future()

    @classmethod
    async def connect(
        cls, sock: socket.socket, on_messages: Callable[[list[ToServer]], None], first: object
    ) -> ServerChannel:
        """Takes over `sock` and sends `first` as the first frame."""
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        transport, channel = await loop.create_unix_connection(lambda: cls(on_messages), sock=sock)
        transport.write(encode_frame(first))
        return channel

    def send(self, message: ToEngine) -> None:
        """Queues a message; those of one loop turn leave as one frame."""
        if not self._outbox:
            self._loop.call_soon(self._flush)
        self._outbox.append(message)

    def _flush(self) -> None:
        messages, self._outbox = self._outbox, []
        if self._transport is None or self._transport.is_closing():
            return
        for frame in encode_frames(messages):
            self._transport.write(frame)

    def close(self) -> None:
        """Drops the connection at once; what was queued is not sent."""
        if self._transport is not None:
            self._transport.abort()

    # --- called by the transport ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is not a subclass

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._reader.feed(data):
                self._on_messages(_decode(_to_server, body))
        except ChannelError as error:
            logger.error("the engine sent %s; its channel is closed", error)
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)
