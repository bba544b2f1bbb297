"""Request bodies: read once, so that they can be looked into, and sent again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from aiohttp import web

from lmserve.distributor.settings import ProxySettings
from lmserve.edge.patience import Patience
from lmserve.errors import BodyTooLarge, Overloaded

PIECE_BYTES = 256 * 1024


class Body:
    """One request's, until it is released."""

    def __init__(self, bodies: Bodies):
        self._bodies = bodies
        self._num_bytes = 0
        self.data = b""

    def count(self, num_bytes: int) -> int:
        self._num_bytes += num_bytes
        self._bodies.held_bytes += num_bytes
        return self._num_bytes

    def release(self) -> None:
        """An answer has begun: it will not be sent again."""
        self.count(-self._num_bytes)
        self.data = b""


class Bodies:
    """All that are held, and how many bytes that is."""

    def __init__(self, settings: ProxySettings):
        self._settings = settings
        self.held_bytes = 0

    def hold(self, data: bytes) -> Body:
        """One that has come already. Raises Overloaded."""
        body = Body(self)
        body.data = data
        body.count(len(data))
        if self.held_bytes > self._settings.max_held_bytes:
            body.release()
            raise _too_many()
        return body

    @contextmanager
    def empty(self) -> Iterator[Body]:
        body = Body(self)
        try:
            yield body
        finally:
            body.release()

    async def read(self, request: web.Request, body: Body) -> None:
        limit = self._settings.max_body_bytes
        if (request.content_length or 0) > limit:
            raise _too_large(limit)
        parts = []
        patience = Patience(self._settings.body_timeout_s)
        while part := await patience.read(request):
            parts.append(part)
            if body.count(len(part)) > limit:
                raise _too_large(limit)
            if self.held_bytes > self._settings.max_held_bytes:
                raise _too_many()
        body.data = b"".join(parts)


def _too_many() -> Overloaded:
    return Overloaded("too many large requests at once: try again later")


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is over {limit} bytes: send less")


def outgoing(body: bytes) -> bytes | AsyncIterator[bytes]:
    """As aiohttp's client takes it: a long one in pieces, so that others get their turn."""
    return body if len(body) <= PIECE_BYTES else _pieces(body)


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(body), PIECE_BYTES):
        yield body[at : at + PIECE_BYTES]
