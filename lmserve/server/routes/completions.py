"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from uuid import uuid4

from aiohttp import web

from lmserve.protocol.completions import (
    CompletionRequest,
    CompletionResponse,
    CompletionStreamResponse,
)
from lmserve.protocol.encode import DONE, CompletionEncoder, Head, completion_response
from lmserve.protocol.openapi import Operation
from lmserve.server import sse
from lmserve.server.routes.generating import HEADERS, STATUSES, Plain, Reply, answer
from lmserve.server.routes.merge import merge
from lmserve.server.routes.route import Route
from lmserve.service.generate import Generation, collect
from lmserve.types import TextDelta, Usage


async def completions(request: web.Request) -> web.StreamResponse:
    return await answer(request, PLAIN)


def reply(asked: CompletionRequest, generations: Sequence[Generation]) -> Reply:
    first = generations[0]
    head = Head(f"cmpl-{uuid4().hex}", first.created, first.model)
    encoder = CompletionEncoder(head, include_usage=asked.include_usage)

    async def whole() -> bytes:
        answers = [await collect(generation) for generation in generations]
        return completion_response(
            head,
            [(text, done.finish_reason) for text, done in answers],
            [done.usage for _, done in answers],
        )

    return Reply(
        chunks=lambda: stream_chunks(generations, encoder, asked.include_usage),
        follow=_follow(first, encoder) if len(generations) == 1 else None,
        whole=whole,
    )


def _follow(generation: Generation, encoder: CompletionEncoder) -> sse.Follow:
    return lambda write: generation.follow(lambda delta: write(encoder.delta(0, delta.text)))


async def stream_chunks(
    generations: Sequence[Generation], encoder: CompletionEncoder, include_usage: bool
) -> AsyncGenerator[bytes, None]:
    """Chunks of all prompts as they come; the last of all also ends the stream."""
    usages: list[Usage] = []
    async with aclosing(merge([generation.events() for generation in generations])) as events:
        async for index, event in events:
            if isinstance(event, TextDelta):
                if event.text:
                    yield encoder.delta(index, event.text)
                continue
            usages.append(event.usage)
            end = b""
            if len(usages) == len(generations):
                end = (encoder.usage(*usages) if include_usage else b"") + DONE
            yield encoder.final(index, event.finish_reason) + end


PLAIN = Plain(body=CompletionRequest, requests=CompletionRequest.to_generate, reply=reply)

ROUTES = [
    Route(
        "POST",
        "/v1/completions",
        completions,
        Operation(
            id="completions_v1",
            summary="Continue a text",
            tag="generate",
            request=CompletionRequest,
            example={
                "model": "SmolLM2-135M-Instruct",
                "prompt": "two steps to build a house:",
                "max_tokens": 32,
            },
            response=CompletionResponse,
            stream=CompletionStreamResponse,
            headers=HEADERS,
            statuses=STATUSES,
        ),
    )
]
