"""The client for plain code: in place of `lmdeploy.serve.openai.api_client`, name for name."""

from __future__ import annotations

import json
import logging
import time
import weakref
from collections.abc import Generator, Mapping
from contextlib import closing
from functools import cached_property
from types import TracebackType
from typing import Any, TypeVar, overload

import httpx2

from lmserve_client import calls
from lmserve_client.base import Client, connection_error, read_item, read_whole, takes
from lmserve_client.calls import Call
from lmserve_client.parsing import AnswerParser
from lmserve_client.terminal import input_prompt, talk
from lmserve_client.types import (
    ChatCompletion,
    ChatPart,
    Completion,
    Encoding,
    EncodingBatch,
    InteractiveAnswer,
)

__all__ = [
    "APIClient",
    "get_model_list",
    "get_streaming_response",
    "input_prompt",
    "json_loads",
    "main",
]

T = TypeVar("T")

_logger = logging.getLogger("lmserve_client")


class APIClient(Client):
    """Calls a server. Its connections are shared by all threads that use it, and are closed by
    `close`, at the end of a `with`, or when nothing refers to it any more.

    Verbs that yield send their request when the first item is taken; leaving the loop early, or
    closing the generator, ends the answer at the server."""

    @property
    def available_models(self) -> list[str]:
        """The ids of the models served; asked once."""
        if self._available_models is None:
            self._available_models = self._one(calls.available_models())
        return self._available_models

    @overload
    def encode(self, input: str, do_preprocess: bool = ..., add_bos: bool = ...) -> Encoding: ...
    @overload
    def encode(
        self, input: list[str] | tuple[str, ...], do_preprocess: bool = ..., add_bos: bool = ...
    ) -> EncodingBatch: ...
    def encode(
        self,
        input: str | list[str] | tuple[str, ...],
        do_preprocess: bool = False,
        add_bos: bool = True,
    ) -> Encoding | EncodingBatch:
        return self._one(calls.encode(input, do_preprocess, add_bos))

    @takes(calls.chat_completions_v1)
    def chat_completions_v1(
        self, call: Call[ChatCompletion]
    ) -> Generator[ChatCompletion, None, None]:
        return self._each(call)

    @takes(calls.completions_v1)
    def completions_v1(self, call: Call[Completion]) -> Generator[Completion, None, None]:
        return self._each(call)

    @takes(calls.chat_interactive_v1)
    def chat_interactive_v1(
        self, call: Call[InteractiveAnswer]
    ) -> Generator[InteractiveAnswer, None, None]:
        return self._each(call)

    @takes(calls.chat)
    def chat(self, call: Call[ChatPart]) -> Generator[ChatPart, None, None]:
        return self._each(call)

    @takes(calls.cancel)
    def cancel(self, call: Call[InteractiveAnswer]) -> InteractiveAnswer:
        return self._one(call)

    @takes(calls.end_session)
    def end_session(self, call: Call[None]) -> None:
        self._one(call)

    def close(self) -> None:
        if "_http" in self.__dict__:  # else there is nothing to close
            self._http.close()

    def __enter__(self) -> APIClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @cached_property
    def _http(self) -> httpx2.Client:
        http = httpx2.Client(**self._http_options)
        weakref.finalize(self, http.close)
        return http

    def _one(self, call: Call[T]) -> T:
        response = self._send(call)
        try:
            content = response.read()
        except httpx2.RequestError as error:
            raise connection_error(error) from error
        finally:
            response.close()
        return read_whole(call, content)

    def _each(self, call: Call[T]) -> Generator[T, None, None]:
        if not call.stream:
            yield self._one(call)
            return
        response = self._send(call)
        parser = AnswerParser()
        try:
            for data in response.iter_bytes():
                for item in parser.feed(data):
                    yield read_item(call, item)
            for item in parser.end():
                yield read_item(call, item)
        except httpx2.RequestError as error:
            raise connection_error(error) from error
        finally:
            response.close()

    def _send(self, call: Call[Any]) -> httpx2.Response:
        """The response, of which only the headers were read, of a call that was accepted."""
        delays = self._delays()
        while True:
            try:
                request = self._http.build_request(**self._request(call))
                response = self._http.send(request, stream=True)
                if response.is_success:
                    return response
                with closing(response):
                    response.read()
                delay_s = self._after_refusal(response, delays)
            except httpx2.RequestError as error:
                delay_s = self._after_failure(error, delays)
            time.sleep(delay_s)


def get_model_list(api_url: str, headers: Mapping[str, str] | None = None) -> list[str]:
    """The ids of the models at `.../v1/models`."""
    with APIClient(api_url) as client:
        client.models_v1_url = api_url
        client.headers = dict(headers or {})
        return client.available_models


def json_loads(content: str | bytes) -> Any:
    """The value, or "" with a warning where it is no JSON."""
    try:
        return json.loads(content)
    except ValueError:
        _logger.warning("weird json content %r", content)
        return ""


def get_streaming_response(
    prompt: str,
    api_url: str,
    session_id: int,
    request_output_len: int = 512,
    stream: bool = True,
    interactive_mode: bool = False,
    ignore_eos: bool = False,
    cancel: bool = False,
    top_p: float = 0.8,
    temperature: float = 0.7,
    api_key: str | None = None,
) -> Generator[ChatPart, None, None]:
    """One call of `/v1/chat/interactive` at `api_url`, on a connection of its own."""
    payload = {
        "prompt": prompt,
        "stream": stream,
        "session_id": session_id,
        "request_output_len": request_output_len,
        "interactive_mode": interactive_mode,
        "ignore_eos": ignore_eos,
        "cancel": cancel,
        "top_p": top_p,
        "temperature": temperature,
    }
    with APIClient(api_url, api_key) as client:
        client.chat_intractive_v1_url = api_url
        yield from client._each(calls.streaming_response(payload))


def main(
    api_server_url: str = "http://0.0.0.0:23333",
    session_id: int = 0,
    api_key: str | None = None,
) -> None:
    """Talks in the terminal."""
    if not api_server_url.startswith(("http://", "https://")):
        api_server_url = "http://" + api_server_url.strip()
    with APIClient(api_server_url, api_key) as client:
        talk(client, session_id)
