"""POST /v1/encode and /generate: LMDeploy's routes for token ids."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from aiohttp import web

from lmserve.edge.keyring import OWNER
from lmserve.protocol.encode import DONE
from lmserve.protocol.openapi import Operation
from lmserve.protocol.tokens import (
    EncodeRequest,
    EncodeResponse,
    GenerateReqInput,
    GenerateReqOutput,
    OutputEncoder,
)
from lmserve.server import body, sse
from lmserve.server.keys import SERVICE
from lmserve.server.routes.route import GENERATE_STATUSES, Route, json_response
from lmserve.service.generate import Generation, read
from lmserve.types import TextDelta


async def encode(request: web.Request) -> web.Response:
    app = request.app
    async with body.reading(request, EncodeRequest) as asked:
        add_bos = asked.add_bos is not False
        encoded = await app[SERVICE].encode(
            asked.to_generate(), add_bos=add_bos, owner=request[OWNER]
        )
    return json_response(asked.answer(encoded))


async def generate(request: web.Request) -> web.StreamResponse:
    app = request.app
    async with body.reading(request, GenerateReqInput) as asked:
        generation = await app[SERVICE].generate(asked.to_generate(request[OWNER]))
    encoder = OutputEncoder(asked, generation)
    with generation.lease():
        if asked.stream:
            return await sse.send(request, stream_chunks(generation, encoder))
        done = await read(generation, encoder.add)
        if asked.return_logprob:  # it may be much to say
            told = await asyncio.to_thread(encoder.end, done)
        else:
            told = encoder.end(done)
    return json_response(told)


async def stream_chunks(
    generation: Generation, encoder: OutputEncoder
) -> AsyncGenerator[bytes, None]:
    """One chunk a step; the last says how the answer ended."""
    async for event in generation.events():
        if isinstance(event, TextDelta):
            yield _event(encoder.chunk(event))
        else:
            yield _event(encoder.end(event)) + DONE


def _event(output: bytes) -> bytes:
    return b"data: %b\n\n" % output


ROUTES = [
    Route(
        "POST",
        "/v1/encode",
        encode,
        Operation(
            id="encode",
            summary="Tokenise texts",
            tag="tokens",
            request=EncodeRequest,
            example={"input": "two steps to build a house:"},
            response=EncodeResponse,
            statuses=(400, 413, 429, 503),
        ),
    ),
    Route(
        "POST",
        "/generate",
        generate,
        Operation(
            # not `generate`: generators would name its arguments GenerateRequest
            id="generate_tokens",
            summary="Continue a text or token ids, and give the answer's token ids too",
            tag="tokens",
            request=GenerateReqInput,
            example={"prompt": "two steps to build a house:", "max_tokens": 32},
            response=GenerateReqOutput,
            stream=GenerateReqOutput,
            statuses=GENERATE_STATUSES,
        ),
    ),
]
