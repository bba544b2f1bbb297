"""The client for asyncio: the verbs of `APIClient`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from functools import cached_property
from types import TracebackType
from typing import Any, TypeVar, overload

import httpx2

from lmserve_client import calls
from lmserve_client.base import Client, connection_error, read_item, read_whole, takes
from lmserve_client.calls import Call
from lmserve_client.parsing import AnswerParser
from lmserve_client.types import (
    ChatCompletion,
    ChatPart,
    Completion,
    Encoding,
    EncodingBatch,
    InteractiveAnswer,
)

T = TypeVar("T")


class AsyncAPIClient(Client):
    """Calls a server: `async with AsyncAPIClient(url) as client`, or `await client.aclose()`.

    Verbs that yield are async generators, which send their request when the first item is taken;
    `aclose()` on one (`contextlib.aclosing` calls it) ends the answer at the server at once. A
    loop that is left early ends it when the generator is collected."""

    async def available_models(self) -> list[str]:
        """The ids of the models served; asked once."""
        if self._available_models is None:
            self._available_models = await self._one(calls.available_models())
        return self._available_models

    @overload
    async def encode(
        self, input: str, do_preprocess: bool = ..., add_bos: bool = ...
    ) -> Encoding: ...
    @overload
    async def encode(
        self, input: list[str] | tuple[str, ...], do_preprocess: bool = ..., add_bos: bool = ...
    ) -> EncodingBatch: ...
    async def encode(
        self,
        input: str | list[str] | tuple[str, ...],
        do_preprocess: bool = False,
        add_bos: bool = True,
    ) -> Encoding | EncodingBatch:
        return await self._one(calls.encode(input, do_preprocess, add_bos))

    @takes(calls.chat_completions_v1)
    def chat_completions_v1(
        self, call: Call[ChatCompletion]
    ) -> AsyncGenerator[ChatCompletion, None]:
        return self._each(call)

    @takes(calls.completions_v1)
    def completions_v1(self, call: Call[Completion]) -> AsyncGenerator[Completion, None]:
        return self._each(call)

    @takes(calls.chat_interactive_v1)
    def chat_interactive_v1(
        self, call: Call[InteractiveAnswer]
    ) -> AsyncGenerator[InteractiveAnswer, None]:
        return self._each(call)

    @takes(calls.chat)
    def chat(self, call: Call[ChatPart]) -> AsyncGenerator[ChatPart, None]:
        return self._each(call)

    @takes(calls.cancel)
    async def cancel(self, call: Call[InteractiveAnswer]) -> InteractiveAnswer:
        return await self._one(call)

    @takes(calls.end_session)
    async def end_session(self, call: Call[None]) -> None:
        await self._one(call)

    async def aclose(self) -> None:
        if "_http" in self.__dict__:
            await self._http.aclose()

    async def __aenter__(self) -> AsyncAPIClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    @cached_property
    def _http(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(**self._http_options)

    async def _one(self, call: Call[T]) -> T:
        response = await self._send(call)
        try:
            content = await response.aread()
        except httpx2.RequestError as error:
            raise connection_error(error) from error
        finally:
            await response.aclose()
        return read_whole(call, content)

    async def _each(self, call: Call[T]) -> AsyncGenerator[T, None]:
        if not call.stream:
            yield await self._one(call)
            return
        response = await self._send(call)
        parser = AnswerParser()
        try:
            async for data in response.aiter_bytes():
                for item in parser.feed(data):
                    yield read_item(call, item)
            for item in parser.end():
                yield read_item(call, item)
        except httpx2.RequestError as error:
            raise connection_error(error) from error
        finally:
            await response.aclose()

    async def _send(self, call: Call[Any]) -> httpx2.Response:
        """The response, of which only the headers were read, of a call that was accepted."""
        delays = self._delays()
        while True:
            try:
                request = self._http.build_request(**self._request(call))
                response = await self._http.send(request, stream=True)
                if response.is_success:
                    return response
                try:
                    await response.aread()
                finally:
                    await response.aclose()
                delay_s = self._after_refusal(response, delays)
            except httpx2.RequestError as error:
                delay_s = self._after_failure(error, delays)
            await asyncio.sleep(delay_s)
