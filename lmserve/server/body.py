"""Reading a request's body: limits, patience, and fields nobody knows."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import msgspec
from aiohttp import web

from lmserve.edge.patience import Patience
from lmserve.errors import BodyTooLarge, Overloaded, RequestError
from lmserve.protocol.decode import decode
from lmserve.server.keys import BODY_BYTES, METRICS, SETTINGS

T = TypeVar("T", bound=msgspec.Struct)

OFF_LOOP_BYTES = 32 * 1024  # larger bodies are decoded in a thread: other streams go on

logger = logging.getLogger(__name__)


@asynccontextmanager
async def reading(request: web.Request, kind: type[T]) -> AsyncIterator[T]:
    """The request's body as `kind`. Its bytes count among those held until this is left: do it
    when the request runs. Fields nobody knows are counted, and logged once a name."""
    app = request.app
    with app[BODY_BYTES].counting() as count:
        try:
            body = await _read_bytes(request, count)
        except Overloaded:
            app[METRICS].rejected("bytes")
            raise
        yield await decoded(app, body, kind)


@asynccontextmanager
async def holding(app: web.Application, body: bytes, kind: type[T]) -> AsyncIterator[T]:
    """As `reading`, of a body that is here."""
    with app[BODY_BYTES].counting() as count:
        count(len(body))
        yield await decoded(app, body, kind)


async def decoded(app: web.Application, body: bytes, kind: type[T]) -> T:
    if len(body) > OFF_LOOP_BYTES:
        asked, unknown = await asyncio.to_thread(decode, body, kind)
    else:
        asked, unknown = decode(body, kind)
    for name in unknown:
        if app[METRICS].unknown_field(name):
            logger.warning("ignoring the unknown field %r", name[:64])
    return asked


async def _read_bytes(request: web.Request, count: Callable[[int], None]) -> bytes:
    limit = request.client_max_size
    encoding = request.headers.get("Content-Encoding", "identity")
    if encoding.strip().lower() != "identity":  # the runner does not decompress either
        raise RequestError("compressed bodies are not read: send it without Content-Encoding")
    if (request.content_length or 0) > limit:
        raise _too_large(limit)
    body = bytearray()
    patience = Patience(request.app[SETTINGS].limits.body_timeout_s)
    while piece := await patience.read(request):
        count(len(piece))
        body += piece
        if len(body) > limit:
            raise _too_large(limit)
    return bytes(body)


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is over {limit} bytes: send less, or raise max_body_bytes")
