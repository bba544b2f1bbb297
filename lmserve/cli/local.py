"""The model of a command that runs here: found (fetched if need be), then started."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from lmserve.cli.config import Loaded
from lmserve.settings import Settings

if TYPE_CHECKING:
    from lmserve.service.generate import Service


def with_model_found(settings: Settings) -> Settings:
    """The settings with the model's path, and its name where none is set.

    Fetches what is missing, with a progress bar on stderr; so the engine starts offline.
    """
    if settings.engine.engine == "mock":
        return settings
    from lmserve.weights.files import cache_dir, resolve

    given = settings.engine
    found = resolve(given.model, cache_dir(given.cache_dir), given.revision, given.load_format)
    engine = dataclasses.replace(given, model=str(found.path))
    name = settings.server.model_name or found.name
    return dataclasses.replace(
        settings, engine=engine, server=dataclasses.replace(settings.server, model_name=name)
    )


def with_chat_template(loaded: Loaded) -> Settings:
    """The settings, `cap` from the chat template where nobody set it. Refuses a template or a
    parser that cannot be used, before anything is started."""
    from lmserve.text.parsing.choice import answer_forms
    from lmserve.text.template_choice import resolve_chat_template

    settings = loaded.settings
    server = settings.server
    answer_forms(None, server.tool_call_parser, server.reasoning_parser)
    choice = resolve_chat_template(settings.server.chat_template)
    if choice.capability is None or loaded.origins["cap"] != "default":
        return settings
    return dataclasses.replace(
        settings, server=dataclasses.replace(settings.server, cap=choice.capability)
    )


@asynccontextmanager
async def local_service(settings: Settings) -> AsyncIterator[Service]:
    """Starts the engine, waits for the model, and stops it at the end."""
    from lmserve.bridge.select import make_handle
    from lmserve.service.generate import Service
    from lmserve.service.metrics import Metrics

    handle = make_handle(settings.engine)
    service = Service(handle, settings, Metrics(handle, settings))
    try:
        await handle.start()
        await handle.wait_ready()
        await service.prepare()
        yield service
    finally:
        service.close()
        await handle.close()
