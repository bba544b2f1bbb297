"""POST /v1/messages and /v1/messages/count_tokens, as Anthropic's clients ask."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from functools import partial
from uuid import uuid4

import msgspec
from aiohttp import web

from lmserve.edge.keyring import OWNER
from lmserve.edge.middlewares import REQUEST_ID
from lmserve.protocol.anthropic.answers import Blocks, MessagesResponse, MessagesUsage
from lmserve.protocol.anthropic.errors import AnthropicErrorResponse, error_body, error_event
from lmserve.protocol.anthropic.events import MESSAGE_EVENTS, MessageTeller
from lmserve.protocol.anthropic.requests import (
    CountTokensRequest,
    CountTokensResponse,
    MessagesRequest,
)
from lmserve.protocol.openapi import Operation, Query
from lmserve.server import body, sse
from lmserve.server.keys import SERVICE
from lmserve.server.routes.route import GENERATE_STATUSES, Route, json_response
from lmserve.service.encode import Form
from lmserve.service.generate import Generation, read
from lmserve.types import TextDelta


async def messages(request: web.Request) -> web.StreamResponse:
    app = request.app
    async with body.reading(request, MessagesRequest) as asked:
        generation = await app[SERVICE].generate(asked.to_generate(request[OWNER]))
    with generation.lease():
        id = f"msg_{uuid4().hex}"
        if asked.stream:
            teller = MessageTeller(
                id,
                generation.model,
                lambda: generation.usage,
                shows_thinking=asked.shows_thinking,
            )
            return await sse.send(
                request,
                stream_events(asked, generation, teller),
                _follow(generation, teller),
                end_with=partial(error_event, request_id=request[REQUEST_ID]),
            )
        answer = await whole(id, asked, generation)
    return json_response(answer)


async def stream_events(
    asked: MessagesRequest, generation: Generation, teller: MessageTeller
) -> AsyncGenerator[bytes, None]:
    """What a step says; first of all what opens the message: by then it is known how much of the
    prompt was cached."""
    async for event in generation.events():
        if isinstance(event, TextDelta):
            if told := teller.delta(event):
                yield told
        else:
            yield teller.final(*asked.stop_of(event), event.usage)


def _follow(generation: Generation, teller: MessageTeller) -> sse.Follow:
    async def follow(write: Callable[[bytes], bool]) -> None:
        def show(delta: TextDelta) -> bool:
            told = teller.delta(delta)
            return not told or write(told)

        await generation.follow(show)

    return follow


async def whole(id: str, asked: MessagesRequest, generation: Generation) -> bytes:
    blocks = Blocks(shows_thinking=asked.shows_thinking)
    done = await read(generation, blocks.add)
    reason, sequence = asked.stop_of(done)
    return msgspec.json.encode(
        MessagesResponse(
            id=id,
            model=generation.model,
            content=blocks.made(),
            stop_reason=reason,
            stop_sequence=sequence,
            usage=MessagesUsage.of(done.usage),
        )
    )


async def count_tokens(request: web.Request) -> web.Response:
    app = request.app
    async with body.reading(request, CountTokensRequest) as asked:
        rendered = await app[SERVICE].render(asked.to_generate(), Form(), request[OWNER])
    answer = msgspec.json.encode(CountTokensResponse(input_tokens=len(rendered.token_ids)))
    return json_response(answer)


_HEADERS = (
    Query("anthropic-version", "Accepted, not used.", default="2023-06-01"),
    Query("anthropic-beta", "Accepted, not used."),
)
_EXAMPLE = {
    "model": "SmolLM2-135M-Instruct",
    "system": "You answer in one sentence.",
    "messages": [{"role": "user", "content": "Hello! How are you?"}],
}

ROUTES = [
    Route(
        "POST",
        "/v1/messages",
        messages,
        Operation(
            id="messages",
            summary="Answer a conversation, as Anthropic's API does",
            tag="generate",
            request=MessagesRequest,
            example=_EXAMPLE | {"max_tokens": 64},
            response=MessagesResponse,
            events=(*MESSAGE_EVENTS, AnthropicErrorResponse),
            numbered=False,
            headers=_HEADERS,
            statuses=GENERATE_STATUSES,
            failure=AnthropicErrorResponse,
        ),
        error_body=error_body,
    ),
    Route(
        "POST",
        "/v1/messages/count_tokens",
        count_tokens,
        Operation(
            id="count_tokens",
            summary="Count the tokens of a conversation, as Anthropic's API does",
            tag="tokens",
            request=CountTokensRequest,
            example=_EXAMPLE,
            response=CountTokensResponse,
            headers=_HEADERS,
            statuses=(400, 404, 413, 429, 503),
            failure=AnthropicErrorResponse,
        ),
        error_body=error_body,
    ),
]
