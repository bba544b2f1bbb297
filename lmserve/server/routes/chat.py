"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from uuid import uuid4

from aiohttp import web

from lmserve.edge.keyring import OWNER
from lmserve.protocol.chat import (
    ChatCompletionRequest,
    ChatCompletionResponse,
    ChatCompletionStreamResponse,
)
from lmserve.protocol.encode import DONE, ChatEncoder, Head, chat_response
from lmserve.protocol.openapi import Operation
from lmserve.server import body, sse
from lmserve.server.keys import SERVICE, SETTINGS
from lmserve.server.routes.route import GENERATE_STATUSES, Route, json_response
from lmserve.service.generate import Generation, collect
from lmserve.types import TextDelta


async def chat_completions(request: web.Request) -> web.StreamResponse:
    app = request.app
    timeout_s = app[SETTINGS].server.write_timeout_s
    async with body.reading(request, ChatCompletionRequest) as asked:
        generation = await app[SERVICE].generate(asked.to_generate(request[OWNER]))
    head = Head(f"chatcmpl-{uuid4().hex}", generation.created, generation.model)
    with generation.lease():
        if asked.stream:
            encoder = ChatEncoder(head, include_usage=asked.include_usage)
            chunks = stream_chunks(generation, encoder, asked.include_usage)
            return await sse.send(
                request,
                chunks,
                timeout_s,
                lambda write: generation.follow(lambda delta: write(encoder.delta(delta.text))),
            )
        text, done = await collect(generation)
    answer = chat_response(head, text, done.finish_reason, done.usage)
    return await sse.send_whole(request, json_response(answer), timeout_s)


async def stream_chunks(
    generation: Generation, encoder: ChatEncoder, include_usage: bool
) -> AsyncGenerator[bytes, None]:
    """One chunk a step; the first also says the role, the last also ends the stream."""
    role = encoder.first()
    async for event in generation.events():
        if isinstance(event, TextDelta):
            if event.text:
                yield role + encoder.delta(event.text)
                role = b""
        else:
            usage = encoder.usage(event.usage) if include_usage else b""
            yield role + encoder.final(event.finish_reason) + usage + DONE


ROUTES = [
    Route(
        "POST",
        "/v1/chat/completions",
        chat_completions,
        Operation(
            id="chat_completions_v1",
            summary="Answer a conversation",
            tag="generate",
            request=ChatCompletionRequest,
            example={
                "model": "SmolLM2-135M-Instruct",
                "messages": [{"role": "user", "content": "Hello! How are you?"}],
                "max_tokens": 64,
            },
            response=ChatCompletionResponse,
            stream=ChatCompletionStreamResponse,
            statuses=GENERATE_STATUSES,
        ),
    )
]
