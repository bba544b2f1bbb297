"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial
from uuid import uuid4

from aiohttp import web

from lmserve.protocol.encode import DONE, ChatEncoder, Head
from lmserve.protocol.openai.chat import ChatCompletionRequest
from lmserve.protocol.openai.chat_answers import (
    ChatCompletionResponse,
    ChatCompletionStreamResponse,
)
from lmserve.protocol.openai.chat_teller import ChatTeller
from lmserve.protocol.openai.plain import Extras
from lmserve.protocol.openapi import Operation
from lmserve.protocol.usage import UsageInfo
from lmserve.server import sse
from lmserve.server.routes import telling
from lmserve.server.routes.generating import HEADERS, STATUSES, Plain, Reply, answer
from lmserve.server.routes.route import Route
from lmserve.service.generate import Generation
from lmserve.types import Content, TextDelta, Usage


async def chat_completions(request: web.Request) -> web.StreamResponse:
    return await answer(request, PLAIN)


def reply(asked: ChatCompletionRequest, generations: Sequence[Generation]) -> Reply:
    first, extras = generations[0], asked.extras
    head = Head(f"chatcmpl-{uuid4().hex}", first.created, first.model)
    encoder = ChatEncoder(head, include_usage=extras.include_usage)
    tellers = [
        ChatTeller(head, index, generation, extras, generation.vocabulary)
        for index, generation in enumerate(generations)
    ]

    def usage(usages: Sequence[Usage]) -> bytes:
        return encoder.usage(UsageInfo.of(*usages, num_prompts=1)) if extras.include_usage else b""

    if extras.any or len(generations) > 1:
        tell, end = telling.tell_richly(tellers), telling.end_richly(tellers)
        chunks = partial(telling.chunks, generations, tell, end, usage)
        follow = telling.follow_one(generations, tell)
    else:
        chunks = partial(stream_chunks, first, encoder, tellers[0], usage)
        follow = _follow(first, encoder, tellers[0])
    return Reply(chunks=chunks, follow=follow, whole=partial(whole, extras, generations, tellers))


async def whole(
    extras: Extras, generations: Sequence[Generation], tellers: Sequence[ChatTeller]
) -> bytes:
    dones = await telling.whole(generations, tellers)

    def encode() -> bytes:
        choices = [teller.choice(done) for teller, done in zip(tellers, dones, strict=True)]
        usage = UsageInfo.of(*[done.usage for done in dones], num_prompts=1)
        return tellers[0].response(choices, usage)

    return await telling.encoded(extras, encode)


# --- one choice, of nothing but what it says ----------------------------------------------


async def stream_chunks(
    generation: Generation,
    encoder: ChatEncoder,
    teller: ChatTeller,
    usage: telling.EncodeUsage,
) -> AsyncGenerator[bytes, None]:
    """One chunk a step; the first also says the role, the last also ends the stream."""
    role = encoder.first()
    teller.begun()
    async for event in generation.events():
        if isinstance(event, TextDelta):
            if chunk := _chunk(event, encoder, teller):
                yield role + chunk
                role = b""
        else:
            yield role + encoder.final(event.finish_reason) + usage([event.usage]) + DONE


def _follow(generation: Generation, encoder: ChatEncoder, teller: ChatTeller) -> sse.Follow:
    async def follow(write: Callable[[bytes], bool]) -> None:
        def show(delta: TextDelta) -> bool:
            if delta.parts is None:
                return write(encoder.delta(delta.text))
            chunk = _chunk(delta, encoder, teller)
            return not chunk or write(chunk)

        await generation.follow(show)

    return follow


def _chunk(delta: TextDelta, encoder: ChatEncoder, teller: ChatTeller) -> bytes:
    """b"" where there is nothing to say yet."""
    parts = delta.parts
    if parts is None:
        return encoder.delta(delta.text)
    if len(parts) == 1 and isinstance(parts[0], Content):
        return encoder.delta(parts[0].text)
    return teller.delta(delta)


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
