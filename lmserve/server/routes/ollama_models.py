"""Ollama's GET /api/tags, /api/ps and /api/version, POST /api/show: what is served."""

from __future__ import annotations

import msgspec
from aiohttp import web

from lmserve.protocol.ollama.answers import OllamaErrorResponse, error_body
from lmserve.protocol.ollama.models import (
    OllamaProcesses,
    OllamaShow,
    OllamaShowRequest,
    OllamaTags,
    OllamaVersion,
    model_of,
    running,
    show,
)
from lmserve.protocol.openapi import Operation
from lmserve.server import body
from lmserve.server.keys import SERVICE
from lmserve.server.routes.models import served_info
from lmserve.server.routes.route import Route, json_response
from lmserve.service.catalog import Model


async def tags(request: web.Request) -> web.Response:
    info = served_info(request)
    served = request.app[SERVICE].catalog.models(info)
    models = [model_of(model.name, model.created, info) for model in served]
    return json_response(msgspec.json.encode(OllamaTags(models=models)))


async def processes(request: web.Request) -> web.Response:
    info = served_info(request)
    served = request.app[SERVICE].catalog.models(info)
    models = [running(model.name, model.created, info) for model in served]
    return json_response(msgspec.json.encode(OllamaProcesses(models=models)))


async def show_model(request: web.Request) -> web.Response:
    async with body.reading(request, OllamaShowRequest) as asked:
        model = model_named(request, asked.named)
    text = await request.app[SERVICE].model_text()
    forms = text.speech.forms
    shown = show(
        model.created,
        text.info,
        calls=forms.calls is not None,
        thinks=forms.reasoning is not None,
    )
    return json_response(msgspec.json.encode(shown))


async def version(_request: web.Request) -> web.Response:
    return json_response(msgspec.json.encode(OllamaVersion()))


def model_named(request: web.Request, name: str | None) -> Model:
    """Ollama's clients put `:latest` after names."""
    info, catalog = served_info(request), request.app[SERVICE].catalog
    if name is not None and name not in {model.name for model in catalog.models(info)}:
        name = name.removesuffix(":latest")
    return catalog.find(name, info)


ROUTES = [
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
        "GET",
        "/api/ps",
        processes,
        Operation(
            id="ollama_ps",
            summary="The models in memory, as Ollama lists them",
            tag="ollama",
            response=OllamaProcesses,
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
