"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from uuid import uuid4

from aiohttp import web

from lmserve.protocol.chat import (
    ChatCompletionRequest,
    ChatCompletionResponse,
    ChatCompletionStreamResponse,
)
from lmserve.protocol.encode import DONE, ChatEncoder, Head, chat_response
from lmserve.protocol.openapi import Operation
from lmserve.server.routes.generating import HEADERS, STATUSES, Plain, Reply, answer
from lmserve.server.routes.route import Route
from lmserve.service.generate import Generation, collect
from lmserve.types import TextDelta


async def chat_completions(request: web.Request) -> web.StreamResponse:
    return await answer(request, PLAIN)


def reply(asked: ChatCompletionRequest, generations: Sequence[Generation]) -> Reply:
    (generation,) = generations
    head = Head(f"chatcmpl-{uuid4().hex}", generation.created, generation.model)
    encoder = ChatEncoder(head, include_usage=asked.include_usage)

    async def whole() -> bytes:
        text, done = await collect(generation)
        return chat_response(head, text, done.finish_reason, done.usage)

    return Reply(
        chunks=lambda: stream_chunks(generation, encoder, asked.include_usage),
        follow=lambda write: generation.follow(lambda delta: write(encoder.delta(delta.text))),
        whole=whole,
    )


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


PLAIN = Plain(
    body=ChatCompletionRequest,
    requests=lambda asked, owner: [asked.to_generate(owner)],
    reply=reply,
)

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
            headers=HEADERS,
            statuses=STATUSES,
        ),
    )
]
