"""How long a body may take to come, a message of a WebSocket, and an answer to be read."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from aiohttp import web

from lmserve.errors import RequestError, TooSlow

LEAST_BYTES_S = 1024  # on average, whatever the pauses: one byte every so often is no way round


@dataclass(slots=True)
class Pace:
    """What must come, or be read: `LEAST_BYTES_S` in each stretch of time, however in it."""

    since: float  # this stretch's begin
    num_bytes: int  # by then

    def is_too_slow(self, now: float, num_bytes: int, timeout_s: float) -> bool:
        """Of a stretch of `timeout_s` that is over; the next one begins."""
        if now - self.since < timeout_s:
            return False
        came = num_bytes - self.num_bytes
        self.since, self.num_bytes = now, num_bytes
        return came < LEAST_BYTES_S * timeout_s


class Patience:
    """One body's. What is awaited in `async with` it must come within `body_timeout_s`, and keep
    up `LEAST_BYTES_S` from the first `body_timeout_s` on. Raises TooSlow."""

    def __init__(self, body_timeout_s: float):
        self._body_timeout_s = body_timeout_s
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._num_bytes = 0
        self._timeout = asyncio.timeout(None)

    async def read(self, request: web.Request) -> bytes:
        """What has come of the body; nothing is its end. Raises TooSlow, and RequestError for a
        body that is cut short."""
        try:
            async with self:
                piece = await request.content.readany()
        except web.RequestPayloadError:
            raise RequestError("the body is cut short or badly framed: send it again") from None
        self.came(len(piece))
        return piece

    def came(self, num_bytes: int) -> None:
        self._num_bytes += num_bytes

    async def __aenter__(self) -> None:
        pause = self._loop.time() + self._body_timeout_s
        overall = self._began + self._body_timeout_s + self._num_bytes / LEAST_BYTES_S
        self._timeout = asyncio.timeout_at(min(pause, overall))
        await self._timeout.__aenter__()

    async def __aexit__(self, *error: object) -> None:
        try:
            await self._timeout.__aexit__(*error)  # type: ignore[arg-type]
        except TimeoutError:
            raise TooSlow(
                f"the body came too slowly: send some of it every {self._body_timeout_s:g} s, and "
                f"{LEAST_BYTES_S} bytes a second on average"
            ) from None
