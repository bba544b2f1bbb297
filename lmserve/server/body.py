"""Reading a request's body: limits, patience, and fields nobody knows."""

from __future__ import annotations

import asyncio
import logging
from typing import TypeVar

import msgspec
from aiohttp import web

from lmserve.errors import BodyTooLarge, RequestError
from lmserve.protocol.decode import decode
from lmserve.server.keys import METRICS

T = TypeVar("T", bound=msgspec.Struct)

READ_TIMEOUT_S = 60.0  # a body that has not arrived by then is given up
OFF_LOOP_BYTES = 256 * 1024  # larger bodies are decoded in a thread: other streams go on

logger = logging.getLogger(__name__)


async def read(request: web.Request, kind: type[T]) -> T:
    """The request's body as `kind`. Fields nobody knows are counted, and logged once a name."""
    body = await _read_bytes(request)
    if len(body) > OFF_LOOP_BYTES:
        decoded, unknown = await asyncio.to_thread(decode, body, kind)
    else:
        decoded, unknown = decode(body, kind)
    for name in unknown:
        if request.app[METRICS].unknown_field(name):
            logger.warning("ignoring the unknown field %r", name[:64])
    return decoded


async def _read_bytes(request: web.Request) -> bytes:
    limit = request.client_max_size
    if "Content-Encoding" in request.headers:  # the runner does not decompress either
        raise RequestError("compressed bodies are not read: send it without Content-Encoding")
    if (request.content_length or 0) > limit:
        raise _too_large(limit)
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            return await request.read()
    except TimeoutError:
        raise RequestError(
            f"the body did not arrive within {READ_TIMEOUT_S:.0f} s: send it faster"
        ) from None
    except web.HTTPRequestEntityTooLarge:
        raise _too_large(limit) from None
    except web.RequestPayloadError:
        raise RequestError("the body is cut short or badly framed: send it again") from None


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is over {limit} bytes: send less, or raise max_body_bytes")
