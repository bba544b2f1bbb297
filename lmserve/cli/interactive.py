"""A client of /v1/chat/interactive: the server keeps the conversation, by its session id."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

from lmserve.cli.client import base_of, first_model, open_http, refuse_failure
from lmserve.errors import EngineError

# To cancel and to end wait for no answer.
CONTROL_TIMEOUT = aiohttp.ClientTimeout(total=10)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the stream."""

    text: str  # what is new; with finish_reason "error", what went wrong
    tokens: int  # generated so far
    history_tokens: int  # in the session before this turn
    finish_reason: str | None  # None until the last line

    @property
    def is_full(self) -> bool:
        """The session has no room for an answer: nothing ran, nothing changed."""
        return self.finish_reason == "length" and self.tokens == 0


class InteractiveClient:
    """Every method raises LmserveError, with one line, where the server fails or refuses."""

    def __init__(self, http: aiohttp.ClientSession, base: str, model: str):
        self.model = model
        self.url = f"{base}/chat/interactive"
        self._http = http

    async def answer(
        self, session_id: int, prompt: str | list[dict[str, Any]], **sampling: Any
    ) -> AsyncGenerator[Line, None]:
        """The next turn, up to the line with a finish reason. A list is a whole history, to begin
        a session with. Closing the generator leaves."""
        body = {
            "prompt": prompt,
            "session_id": session_id,
            "interactive_mode": True,
            "stream": True,
            **sampling,
        }
        finished = False
        with self._told():
            async with self._http.post(self.url, json=body) as response:
                await refuse_failure(response)
                async for data in response.content:
                    if data := data.strip():
                        line = _line(data)
                        finished = line.finish_reason is not None
                        yield line
        if not finished:
            raise EngineError("the server broke off: its answer may not be complete")

    async def cancel(self, session_id: int) -> None:
        """Stops the running answer, which ends in its own stream; the session stays."""
        await self._control({"session_id": session_id, "cancel": True, "interactive_mode": True})

    async def end(self, session_id: int) -> None:
        """The server forgets the session."""
        await self._control(
            {"session_id": session_id, "request_output_len": 0, "interactive_mode": False}
        )

    async def _control(self, body: dict[str, Any]) -> None:
        with self._told():
            request = self._http.post(
                self.url, json={"prompt": "", **body}, timeout=CONTROL_TIMEOUT
            )
            async with request as response:
                await refuse_failure(response)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except aiohttp.ClientConnectorError as error:
            raise EngineError(f"{self.url}: no server answers there: {error}") from None
        except (aiohttp.ClientError, TimeoutError):
            raise EngineError(f"{self.url}: the connection was lost") from None
        except (ValueError, TypeError, LookupError) as error:
            raise EngineError(f"{self.url} sent no line of the protocol: {error}") from None


@asynccontextmanager
async def open_interactive(url: str, api_key: str | None) -> AsyncIterator[InteractiveClient]:
    """`url` is a server's address, with or without http:// and /v1."""
    base = base_of(url)
    async with open_http(api_key) as http:
        yield InteractiveClient(http, base, await first_model(http, base))


def _line(data: bytes) -> Line:
    value = orjson.loads(data)
    return Line(
        text=str(value["text"]),
        tokens=int(value["tokens"]),
        history_tokens=int(value.get("history_tokens") or 0),
        finish_reason=value["finish_reason"],
    )
