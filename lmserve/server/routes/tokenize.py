"""POST /tokenize, /detokenize and /v1/chat/completions/render, GET /tokenizer_info: nothing
runs."""

from __future__ import annotations

import msgspec
from aiohttp import web

from lmserve.edge.keyring import OWNER
from lmserve.protocol.openai.chat import ChatCompletionRequest
from lmserve.protocol.openapi import Operation
from lmserve.protocol.tokenize import (
    DetokenizeRequest,
    DetokenizeResponse,
    RenderResponse,
    TokenizeRequest,
    TokenizeResponse,
    TokenizerInfo,
)
from lmserve.server import body
from lmserve.server.keys import SERVICE
from lmserve.server.routes.route import Route, json_response
from lmserve.service.encode import Form

_STATUSES = (400, 404, 413, 429, 503)


async def tokenize(request: web.Request) -> web.Response:
    async with body.reading(request, TokenizeRequest) as asked:
        form = Form(
            add_special=asked.adds_special,
            add_generation_prompt=asked.begins_answer,
            spelled=bool(asked.return_token_strs),
        )
        rendered = await request.app[SERVICE].render(asked.to_generate(), form, request[OWNER])
    answer = TokenizeResponse(
        count=len(rendered.token_ids),
        max_model_len=rendered.model.max_model_len,
        tokens=rendered.token_ids,
        token_strs=rendered.spelled,
    )
    return _say(answer)


async def detokenize(request: web.Request) -> web.Response:
    async with body.reading(request, DetokenizeRequest) as asked:
        rendered = await request.app[SERVICE].render(asked.to_generate(), Form(), request[OWNER])
    return _say(DetokenizeResponse(prompt=rendered.text))


async def tokenizer_info(request: web.Request) -> web.Response:
    info = (await request.app[SERVICE].model_text()).info
    answer = TokenizerInfo(
        model_max_length=info.max_model_len,
        bos_token=info.bos_token,
        eos_token=info.eos_token,
        chat_template=info.chat_template,
    )
    return _say(answer)


async def render_chat(request: web.Request) -> web.Response:
    async with body.reading(request, ChatCompletionRequest) as asked:
        rendered = await request.app[SERVICE].render(asked.to_generate(), Form(), request[OWNER])
    answer = RenderResponse(
        model=rendered.model.name,
        prompt=rendered.text,
        token_ids=rendered.token_ids,
        count=len(rendered.token_ids),
        max_model_len=rendered.model.max_model_len,
    )
    return _say(answer)


def _say(answer: msgspec.Struct) -> web.Response:
    return json_response(msgspec.json.encode(answer))


ROUTES = [
    Route(
        "POST",
        "/tokenize",
        tokenize,
        Operation(
            id="tokenize",
            summary="A text or a conversation in tokens",
            tag="tokens",
            request=TokenizeRequest,
            example={"prompt": "two steps to build a house:"},
            response=TokenizeResponse,
            statuses=_STATUSES,
        ),
    ),
    Route(
        "POST",
        "/detokenize",
        detokenize,
        Operation(
            id="detokenize",
            summary="Tokens as text",
            tag="tokens",
            request=DetokenizeRequest,
            example={"tokens": [1, 2, 3]},
            response=DetokenizeResponse,
            statuses=_STATUSES,
        ),
    ),
    Route(
        "GET",
        "/tokenizer_info",
        tokenizer_info,
        Operation(
            id="tokenizer_info",
            summary="Special tokens and the chat template",
            tag="tokens",
            response=TokenizerInfo,
            statuses=(503,),
        ),
    ),
    Route(
        "POST",
        "/v1/chat/completions/render",
        render_chat,
        Operation(
            id="render_chat_completion",
            summary="What a chat completion would run: the prompt after the chat template",
            tag="tokens",
            request=ChatCompletionRequest,
            example={"messages": [{"role": "user", "content": "Hello! How are you?"}]},
            response=RenderResponse,
            statuses=_STATUSES,
        ),
    ),
]
