"""Ollama's POST /api/chat and /api/generate."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from typing import Literal, TypeVar

from aiohttp import web

from lmserve.edge.keyring import OWNER
from lmserve.errors import LmserveError
from lmserve.protocol.ollama.answers import (
    NDJSON,
    OllamaChatResponse,
    OllamaEncoder,
    OllamaErrorResponse,
    OllamaGenerateResponse,
    error_body,
)
from lmserve.protocol.ollama.requests import OllamaChatRequest, OllamaGenerateRequest
from lmserve.protocol.ollama.teller import OllamaTeller
from lmserve.protocol.openapi import Operation
from lmserve.server import body, sse
from lmserve.server.keys import SERVICE
from lmserve.server.routes.ollama_models import model_named
from lmserve.server.routes.route import GENERATE_STATUSES, Route, json_response
from lmserve.service.generate import Generation, read
from lmserve.types import TextDelta

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
    async with body.reading(request, kind) as asked:
        model = model_named(request, asked.model)
        encoder = OllamaEncoder(model.name, name)
        if not asked.asks:
            return _load(encoder, asked.streams)
        generation = await app[SERVICE].generate(asked.to_generate(request[OWNER], model.name))
    with generation.lease():
        teller = OllamaTeller(encoder, generation.vocabulary)
        if asked.streams:
            return await sse.send(
                request,
                _lines(generation, teller, began_ns),
                _follow(generation, teller),
                end_with=_error_line,
                late=lambda: {"Content-Type": NDJSON},
                keep_alive=False,
            )
        done = await read(generation, teller.add)
    whole = teller.whole(done, generation.timings, time.perf_counter_ns() - began_ns)
    return json_response(whole)


async def _lines(
    generation: Generation, teller: OllamaTeller, began_ns: int
) -> AsyncGenerator[bytes, None]:
    """What a step says; the last line has the counts."""
    async for event in generation.events():
        if not isinstance(event, TextDelta):
            yield teller.last(event, generation.timings, time.perf_counter_ns() - began_ns)
        elif told := teller.delta(event):
            yield told


def _follow(generation: Generation, teller: OllamaTeller) -> sse.Follow:
    async def follow(write: Callable[[bytes], bool]) -> None:
        def show(delta: TextDelta) -> bool:
            told = teller.delta(delta)
            return not told or write(told)

        await generation.follow(show)

    return follow


def _load(encoder: OllamaEncoder, streams: bool) -> web.Response:
    content_type = NDJSON if streams else "application/json"
    return web.Response(body=encoder.load(), content_type=content_type)


def _error_line(error: LmserveError) -> bytes:
    return error_body(error) + b"\n"


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
]
