"""A client's name of one request, by which the same one sent again is told from a new one."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
from aiohttp import web

from lmserve.errors import InvalidField, KeyReused
from lmserve.server.body import OFF_LOOP_BYTES

HEADER = "Idempotency-Key"

_KEY = re.compile(r"[\x20-\x7e]{1,255}")


async def idempotency(request: web.Request, asked: msgspec.Struct) -> tuple[str, bytes] | None:
    """The key, and the digest of what is asked. Raises InvalidField."""
    key = request.headers.get(HEADER)
    if key is None:
        return None
    if (request.content_length or OFF_LOOP_BYTES) < OFF_LOOP_BYTES:
        return named(key, request.path, asked, HEADER)
    return await asyncio.to_thread(named, key, request.path, asked, HEADER)


def named(key: str, path: str, asked: msgspec.Struct, param: str) -> tuple[str, bytes]:
    """As `idempotency`, of a key that came as `param`."""
    if not _KEY.fullmatch(key):
        raise InvalidField(
            f"{param} must be 1 to 255 printable ASCII characters: a UUID, say", param=param
        )
    what = path.encode() + b" " + msgspec.json.encode(asked)
    return key, hashlib.sha256(what).digest()


@contextmanager
def key_from(param: str) -> Iterator[None]:
    """Raises KeyReused with the field that the key came in."""
    try:
        yield
    except KeyReused as error:
        raise KeyReused(error.message, param=param) from None
