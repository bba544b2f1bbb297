"""Ollama's POST /api/chat, /api/generate and /api/show, GET /api/tags and /api/version."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from typing import Literal, TypeVar

import msgspec
from aiohttp import web

from lmserve.edge.keyring import OWNER
from lmserve.errors import LmserveError
from lmserve.protocol.ollama import (
    OllamaChatRequest,
    OllamaGenerateRequest,
)
from lmserve.protocol.ollama_answers import (
    NDJSON,
    OllamaChatResponse,
    OllamaEncoder,
    OllamaErrorResponse,
    OllamaGenerateResponse,
    error_body,
)
from lmserve.protocol.ollama_models import (
    OllamaShow,
    OllamaShowRequest,
    OllamaTags,
    OllamaVersion,
    model_of,
    show,
)
from lmserve.protocol.openapi import Operation
from lmserve.server import body, sse
from lmserve.server.keys import SERVICE, SETTINGS
from lmserve.server.routes.models import served_info
from lmserve.server.routes.route import GENERATE_STATUSES, Route, json_response
from lmserve.service.catalog import Model
from lmserve.service.generate import Generation, collect
from lmserve.types import Done, TextDelta

Asked = TypeVar("Asked", OllamaChatRequest, OllamaGenerateRequest)


async def chat(request: web.Request) -> web.StreamResponse:
    return await _answer(request, OllamaChatRequest, "chat")


async def generate(request: web.Request) -> web.StreamResponse:
    return await _answer(request, OllamaGenerateRequest, "generate")


async def _answer(
    request: web.Request, kind: type[Asked], name: Literal["chat", "generate"]
) -> web.StreamResponse:
    began_ns = time.perf_counter_ns()
    app = request.app
    timeout_s = app[SETTINGS].server.write_timeout_s
    async with body.reading(request, kind) as asked:
        model = _model(request, asked.model)
        encoder = OllamaEncoder(model.name, name)
        if not asked.asks:
            return _load(encoder, asked.streams)
        generation = await app[SERVICE].generate(asked.to_generate(request[OWNER], model.name))
    with generation.lease():
        if not asked.streams:
            text, done = await collect(generation)
            whole = json_response(_final(encoder, text, generation, done, began_ns))
            return await sse.send_whole(request, whole, timeout_s)
        return await sse.send(
            request,
            _lines(generation, encoder, began_ns),
            timeout_s,
            lambda write: generation.follow(lambda delta: write(encoder.delta(delta.text))),
            end_with=_error_line,
            late=lambda: {"Content-Type": NDJSON},
        )


async def _lines(
    generation: Generation, encoder: OllamaEncoder, began_ns: int
) -> AsyncGenerator[bytes, None]:
    """One line a step; the last has the counts."""
    async for event in generation.events():
        if not isinstance(event, TextDelta):
            yield _final(encoder, "", generation, event, began_ns)
        elif event.text:
            yield encoder.delta(event.text)


def _final(
    encoder: OllamaEncoder, text: str, generation: Generation, done: Done, began_ns: int
) -> bytes:
    first_s = generation.ttft_s
    first_ns = None if first_s is None else int(first_s * 1e9)
    total_ns = time.perf_counter_ns() - began_ns
    return encoder.final(text, done.finish_reason, done.usage, total_ns, first_ns)


def _load(encoder: OllamaEncoder, streams: bool) -> web.Response:
    content_type = NDJSON if streams else "application/json"
    return web.Response(body=encoder.load(), content_type=content_type)


def _error_line(error: LmserveError) -> bytes:
    return error_body(error) + b"\n"


# --- models -------------------------------------------------------------------------------


async def tags(request: web.Request) -> web.Response:
    info = served_info(request)
    served = request.app[SERVICE].catalog.models(info)
    models = [model_of(model.name, model.created, info) for model in served]
    return json_response(msgspec.json.encode(OllamaTags(models=models)))


async def show_model(request: web.Request) -> web.Response:
    async with body.reading(request, OllamaShowRequest) as asked:
        model = _model(request, asked.named)
    return json_response(msgspec.json.encode(show(model.created, served_info(request))))


async def version(_request: web.Request) -> web.Response:
    return json_response(msgspec.json.encode(OllamaVersion()))


def _model(request: web.Request, name: str | None) -> Model:
    """Ollama's clients put `:latest` after names."""
    info, catalog = served_info(request), request.app[SERVICE].catalog
    if name is not None and name not in {model.name for model in catalog.models(info)}:
        name = name.removesuffix(":latest")
    return catalog.find(name, info)


ROUTES = [
    Route(
        "POST",
        "/api/chat",
        chat,
        Operation(
            id="ollama_chat",
            summary="Answer a conversation, as Ollama does",
            tag="ollama",
            request=OllamaChatRequest,
            example={
                "model": "SmolLM2-135M-Instruct",
                "messages": [{"role": "user", "content": "Hello! How are you?"}],
                "options": {"num_predict": 64},
            },
            response=OllamaChatResponse,
            ndjson=OllamaChatResponse,
            statuses=GENERATE_STATUSES,
            failure=OllamaErrorResponse,
        ),
        error_body=error_body,
    ),
    Route(
        "POST",
        "/api/generate",
        generate,
        Operation(
            id="ollama_generate",
            summary="Answer a prompt, as Ollama does",
            tag="ollama",
            request=OllamaGenerateRequest,
            example={
                "model": "SmolLM2-135M-Instruct",
                "prompt": "Hello! How are you?",
                "options": {"num_predict": 64},
            },
            response=OllamaGenerateResponse,
            ndjson=OllamaGenerateResponse,
            statuses=GENERATE_STATUSES,
            failure=OllamaErrorResponse,
        ),
        error_body=error_body,
    ),
    Route(
        "GET",
        "/api/tags",
        tags,
        Operation(
            id="ollama_tags",
            summary="The models served, as Ollama lists them",
            tag="ollama",
            response=OllamaTags,
            statuses=(503,),
            failure=OllamaErrorResponse,
        ),
        error_body=error_body,
    ),
    Route(
        "POST",
        "/api/show",
        show_model,
        Operation(
            id="ollama_show",
            summary="One model, as Ollama tells of it",
            tag="ollama",
            request=OllamaShowRequest,
            example={"model": "SmolLM2-135M-Instruct"},
            response=OllamaShow,
            statuses=(400, 404, 413, 429, 503),
            failure=OllamaErrorResponse,
        ),
        error_body=error_body,
    ),
    Route(
        "GET",
        "/api/version",
        version,
        Operation(
            id="ollama_version",
            summary="Which Ollama these routes are like",
            tag="ollama",
            response=OllamaVersion,
            failure=OllamaErrorResponse,
        ),
        error_body=error_body,
    ),
]
