"""POST /v1/embeddings."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
from aiohttp import web

from lmserve.edge.keyring import OWNER
from lmserve.protocol.embeddings import (
    EmbeddingObject,
    EmbeddingRequest,
    EmbeddingResponse,
    EmbeddingUsage,
)
from lmserve.protocol.openapi import Operation
from lmserve.server import body
from lmserve.server.keys import SERVICE
from lmserve.server.routes.route import GENERATE_STATUSES, Route, json_response
from lmserve.service.rating.embedding import Embedding


async def embeddings(request: web.Request) -> web.Response:
    app = request.app
    async with body.reading(request, EmbeddingRequest) as asked:
        return json_response(await answer(app, asked, request[OWNER]))


async def answer(app: web.Application, asked: EmbeddingRequest, owner: str) -> bytes:
    found = await app[SERVICE].embed(asked.to_generate(owner), asked.pooling or "mean")
    if len(found) == 1:
        return _encoded(asked, found)
    return await asyncio.to_thread(_encoded, asked, found)  # of thousands it takes seconds


def _encoded(asked: EmbeddingRequest, found: Sequence[Embedding]) -> bytes:
    num_tokens = sum(one.num_tokens for one in found)
    response = EmbeddingResponse(
        data=[
            EmbeddingObject(index=index, embedding=asked.vector(one.vector))
            for index, one in enumerate(found)
        ],
        model=found[0].model,
        usage=EmbeddingUsage(prompt_tokens=num_tokens, total_tokens=num_tokens),
    )
    return msgspec.json.encode(response)


ROUTES = [
    Route(
        "POST",
        "/v1/embeddings",
        embeddings,
        Operation(
            id="create_embedding",
            summary="Texts as vectors",
            tag="embeddings",
            request=EmbeddingRequest,
            example={"input": ["two steps to build a house", "how to cook rice"]},
            response=EmbeddingResponse,
            statuses=GENERATE_STATUSES,
        ),
    )
]
