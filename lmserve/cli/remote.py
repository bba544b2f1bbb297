"""A model behind any OpenAI-compatible server, over SSE."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson

from lmserve.cli.client import base_of, first_model, message_of, open_http, refuse_failure
from lmserve.cli.talk import Message, Talker
from lmserve.errors import EngineError


class RemoteTalker:
    def __init__(self, http: aiohttp.ClientSession, base: str, name: str):
        self.name = name
        self._http = http
        self._base = base

    async def answer(
        self, messages: list[Message], sampling: dict[str, Any]
    ) -> AsyncGenerator[str, None]:
        body = {"model": self.name, "messages": messages, "stream": True} | {
            name: value for name, value in sampling.items() if value is not None
        }
        try:
            async with self._http.post(f"{self._base}/chat/completions", json=body) as response:
                await refuse_failure(response)
                async for data in _events(response):
                    if text := _text_of(data):
                        yield text
        except aiohttp.ClientError as error:
            raise EngineError(f"{self._base}: the connection was lost: {error}") from None
        except (ValueError, TypeError, AttributeError, LookupError) as error:
            raise EngineError(f"{self._base} sent no OpenAI-style event: {error}") from None


@asynccontextmanager
async def open_remote(url: str, model_name: str | None) -> AsyncIterator[Talker]:
    """`url` is a server's address, with or without /v1."""
    base = base_of(url)
    async with open_http() as http:
        yield RemoteTalker(http, base, model_name or await first_model(http, base))


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """The JSON of each SSE event, up to `[DONE]`, which ends every whole answer."""
    async for line in response.content:
        if line.startswith(b"data:"):
            data = line[5:].strip()
            if data == b"[DONE]":
                return
            yield orjson.loads(data)
    raise EngineError("the server broke off: its answer may not be complete")


def _text_of(data: dict[str, Any]) -> str:
    if error := data.get("error"):
        raise EngineError(message_of(error))
    choices = data.get("choices") or [{}]
    return (choices[0].get("delta") or {}).get("content") or ""
