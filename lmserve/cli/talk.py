"""Somebody who answers: a model started here, or any OpenAI-compatible server."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

from lmserve.settings import Settings
from lmserve.types import GenerateRequest, TextDelta

if TYPE_CHECKING:
    from lmserve.service.generate import Service

Message = dict[str, Any]


class Talker(Protocol):
    """Answers a conversation, piece by piece. Closing the generator stops the answer."""

    name: str

    def answer(
        self, messages: list[Message], sampling: dict[str, Any]
    ) -> AsyncGenerator[str, None]: ...


def open_talker(settings: Settings) -> AbstractAsyncContextManager[Talker]:
    """`settings.engine.model` is a model's path, or the http(s) URL of a server."""
    model = settings.engine.model
    if model is not None and is_url(model):
        from lmserve.cli.remote import open_remote

        return open_remote(model, settings.server.model_name)
    return open_local(settings)


def with_model_ready(settings: Settings) -> Settings:
    """What `open_talker` takes: a model of this machine is found, and fetched if need be. Called
    where no loop runs, so that Ctrl-C ends it."""
    model = settings.engine.model
    if model is not None and is_url(model):
        return settings
    from lmserve.cli.local import with_model_found

    return with_model_found(settings)


def is_url(model: str) -> bool:
    return model.startswith(("http://", "https://"))


class LocalTalker:
    def __init__(self, service: Service, name: str):
        self.name = name
        self._service = service

    async def answer(
        self, messages: list[Message], sampling: dict[str, Any]
    ) -> AsyncGenerator[str, None]:
        request = GenerateRequest(messages=messages, **sampling)
        generation = await self._service.generate(request)
        with generation.lease():
            async for event in generation.events():
                if isinstance(event, TextDelta):
                    yield event.text


@asynccontextmanager
async def open_local(settings: Settings) -> AsyncIterator[Talker]:
    from lmserve.cli.local import local_service

    async with local_service(settings) as service:
        yield LocalTalker(service, settings.server.model_name or "mock")


def conversation(system: str | None) -> list[Message]:
    """How a conversation begins."""
    return [{"role": "system", "content": system}] if system else []


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def sampling_of(options: dict[str, Any]) -> dict[str, Any]:
    """What the flags of a command say about sampling: takes them out of `options`."""
    names = {field.name for field in dataclasses.fields(GenerateRequest)}
    return {name: options.pop(name) for name in list(options) if name in names - {"model"}}
