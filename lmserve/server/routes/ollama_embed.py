"""Ollama's POST /api/embed and /api/embeddings."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import msgspec
from aiohttp import web

from lmserve.edge.keyring import OWNER
from lmserve.protocol.embeddings import vector_of
from lmserve.protocol.ollama.answers import OllamaErrorResponse, error_body
from lmserve.protocol.ollama.embed import (
    OllamaEmbeddingsRequest,
    OllamaEmbeddingsResponse,
    OllamaEmbedRequest,
    OllamaEmbedResponse,
)
from lmserve.protocol.openapi import Operation
from lmserve.server import body
from lmserve.server.keys import SERVICE
from lmserve.server.routes.ollama_models import model_named
from lmserve.server.routes.route import GENERATE_STATUSES, Route, json_response
from lmserve.service.rating.embedding import Embedding


async def embed(request: web.Request) -> web.Response:
    began_ns = time.perf_counter_ns()
    async with body.reading(request, OllamaEmbedRequest) as asked:
        name = model_named(request, asked.model).name
        found = await request.app[SERVICE].embed(asked.to_generate(request[OWNER], name), "mean")
    if len(found) == 1:
        answer = _encoded(asked, name, found, began_ns)
    else:  # of thousands it takes seconds
        answer = await asyncio.to_thread(_encoded, asked, name, found, began_ns)
    return json_response(answer)


def _encoded(
    asked: OllamaEmbedRequest, name: str, found: Sequence[Embedding], began_ns: int
) -> bytes:
    vectors = [vector_of(one.vector, asked.dimensions, normalize=True) for one in found]
    answer = OllamaEmbedResponse(
        model=name,
        embeddings=[vector.tolist() for vector in vectors],
        total_duration=time.perf_counter_ns() - began_ns,
        prompt_eval_count=sum(one.num_tokens for one in found),
    )
    return msgspec.json.encode(answer)


async def embeddings(request: web.Request) -> web.Response:
    async with body.reading(request, OllamaEmbeddingsRequest) as asked:
        name = model_named(request, asked.model).name
        (one,) = await request.app[SERVICE].embed(asked.to_generate(request[OWNER], name), "mean")
    vector = vector_of(one.vector, normalize=False)
    answer = OllamaEmbeddingsResponse(embedding=vector.tolist())
    return json_response(msgspec.json.encode(answer))


ROUTES = [
    Route(
        "POST",
        "/api/embed",
        embed,
        Operation(
            id="ollama_embed",
            summary="Texts as vectors, as Ollama makes them",
            tag="ollama",
            request=OllamaEmbedRequest,
            example={"input": ["two steps to build a house", "how to cook rice"]},
            response=OllamaEmbedResponse,
            statuses=GENERATE_STATUSES,
            failure=OllamaErrorResponse,
        ),
        error_body=error_body,
    ),
    Route(
        "POST",
        "/api/embeddings",
        embeddings,
        Operation(
            id="ollama_embeddings",
            summary="A text as a vector, in Ollama's older form",
            tag="ollama",
            request=OllamaEmbeddingsRequest,
            example={"prompt": "two steps to build a house"},
            response=OllamaEmbeddingsResponse,
            statuses=GENERATE_STATUSES,
            failure=OllamaErrorResponse,
        ),
        error_body=error_body,
    ),
]
