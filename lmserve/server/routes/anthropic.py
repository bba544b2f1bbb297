"""POST /v1/messages and /v1/messages/count_tokens, as Anthropic's clients ask."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from functools import partial
from uuid import uuid4

import msgspec
from aiohttp import web

from lmserve.edge.keyring import OWNER
from lmserve.edge.middlewares import REQUEST_ID
from lmserve.protocol import anthropic_events as wire
from lmserve.protocol.anthropic import (
    CountTokensRequest,
    CountTokensResponse,
    MessagesRequest,
    MessagesResponse,
    MessagesUsage,
    TextBlock,
)
from lmserve.protocol.anthropic_errors import AnthropicErrorResponse, error_body, error_event
from lmserve.protocol.openapi import Operation, Query
from lmserve.server import body, sse
from lmserve.server.keys import SERVICE, SETTINGS
from lmserve.server.routes.route import GENERATE_STATUSES, Route, json_response
from lmserve.service.encode import Form
from lmserve.service.generate import Generation, collect
from lmserve.types import Done, TextDelta


async def messages(request: web.Request) -> web.StreamResponse:
    app = request.app
    timeout_s = app[SETTINGS].server.write_timeout_s
    async with body.reading(request, MessagesRequest) as asked:
        generation = await app[SERVICE].generate(asked.to_generate(request[OWNER]))
    with generation.lease():
        id = f"msg_{uuid4().hex}"
        if asked.stream:
            return await sse.send(
                request,
                stream_events(id, asked, generation),
                timeout_s,
                lambda write: generation.follow(lambda delta: write(wire.delta(delta.text))),
                end_with=partial(error_event, request_id=request[REQUEST_ID]),
            )
        text, done = await collect(generation)
    answer = whole(id, asked, generation.model, text, done)
    return await sse.send_whole(request, json_response(answer), timeout_s)


async def stream_events(
    id: str, asked: MessagesRequest, generation: Generation
) -> AsyncGenerator[bytes, None]:
    """One delta a step; before the first, what opens the message: by then it is known how much
    of the prompt was cached."""
    is_open = False
    async for event in generation.events():
        opening = b"" if is_open else wire.opening(id, generation.model, generation.usage)
        is_open = True
        if isinstance(event, TextDelta):
            yield opening + wire.delta(event.text)
        else:
            yield opening + wire.closing(*asked.stop_of(event), event.usage)


def whole(id: str, asked: MessagesRequest, model: str, text: str, done: Done) -> bytes:
    reason, sequence = asked.stop_of(done)
    return msgspec.json.encode(
        MessagesResponse(
            id=id,
            model=model,
            content=[TextBlock(text=text)],
            stop_reason=reason,
            stop_sequence=sequence,
            usage=MessagesUsage.of(done.usage),
        )
    )


async def count_tokens(request: web.Request) -> web.Response:
    app = request.app
    async with body.reading(request, CountTokensRequest) as asked:
        rendered = await app[SERVICE].render(asked.to_generate(), Form())
    answer = msgspec.json.encode(CountTokensResponse(input_tokens=len(rendered.token_ids)))
    return await sse.send_whole(
        request, json_response(answer), app[SETTINGS].server.write_timeout_s
    )


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
            events=(*wire.MESSAGE_EVENTS, AnthropicErrorResponse),
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
