"""POST /v1/score, /v1/rerank and, LMDeploy's, /get_ppl."""

from __future__ import annotations

import time
from collections.abc import Sequence
from uuid import uuid4

import msgspec
from aiohttp import web

from lmserve.edge.keyring import OWNER
from lmserve.errors import InvalidField
from lmserve.protocol.openapi import Operation
from lmserve.protocol.scoring import (
    PerplexityRequest,
    PerplexityResponse,
    RerankRequest,
    RerankResponse,
    Score,
    ScoreRequest,
    ScoreResponse,
    ScoreUsage,
    share,
)
from lmserve.server import body
from lmserve.server.keys import SERVICE
from lmserve.server.routes.route import GENERATE_STATUSES, Route, json_response
from lmserve.service.rating.scoring import Likelihood


async def score(request: web.Request) -> web.Response:
    async with body.reading(request, ScoreRequest) as asked:
        answer = await score_answer(request.app, asked, request[OWNER])
    return _say(answer)


async def score_answer(app: web.Application, asked: ScoreRequest, owner: str) -> ScoreResponse:
    found = await _judge(app, asked, owner)
    scores = [
        Score(index=index, score=share(logprobs), log_likelihoods=logprobs)
        for index, each in enumerate(found)
        for logprobs in [_logprobs(each)]
    ]
    return ScoreResponse(
        id=f"score-{uuid4().hex}",
        created=int(time.time()),
        model=found[0][0].model,
        data=scores,
        usage=_usage(found),
    )


async def rerank(request: web.Request) -> web.Response:
    async with body.reading(request, RerankRequest) as asked:
        answer = await rerank_answer(request.app, asked, request[OWNER])
    return _say(answer)


async def rerank_answer(app: web.Application, asked: RerankRequest, owner: str) -> RerankResponse:
    found = await _judge(app, asked, owner)
    return RerankResponse(
        id=f"rerank-{uuid4().hex}",
        model=found[0][0].model,
        results=asked.results([share(_logprobs(each)) for each in found]),
        usage=_usage(found),
    )


async def perplexity(request: web.Request) -> web.Response:
    async with body.reading(request, PerplexityRequest) as asked:
        (found,) = await request.app[SERVICE].perplexity(asked.to_generate(request[OWNER]))
    if found.num_tokens == 0:
        raise InvalidField("input has one token: give at least two", param="input")
    answer = PerplexityResponse(ppl=-found.logprob / found.num_tokens, num_tokens=found.num_tokens)
    return _say(answer)


async def _judge(
    app: web.Application, asked: ScoreRequest | RerankRequest, owner: str
) -> list[list[Likelihood]]:
    """Of each label after each prompt."""
    service = app[SERVICE]
    text = await service.model_text()
    chats = text.info.chat_template is not None
    return await service.score(asked.to_generate(owner, chats=chats), asked.given_labels())


def _logprobs(found: Sequence[Likelihood]) -> list[float]:
    return [each.logprob for each in found]


def _usage(found: Sequence[Sequence[Likelihood]]) -> ScoreUsage:
    num_tokens = sum(each.num_prompt_tokens for labels in found for each in labels)
    return ScoreUsage(prompt_tokens=num_tokens, total_tokens=num_tokens)


def _say(answer: msgspec.Struct) -> web.Response:
    return json_response(msgspec.json.encode(answer))


_PAIRS = {"text_1": "What do cats eat?", "text_2": ["Cats eat mice.", "Rome is in Italy."]}
_DOCUMENTS = {"query": "What do cats eat?", "documents": ["Cats eat mice.", "Rome is in Italy."]}

ROUTES = [
    Route(
        "POST",
        "/v1/score",
        score,
        Operation(
            id="create_score",
            summary="How well documents answer queries",
            tag="embeddings",
            request=ScoreRequest,
            example=_PAIRS,
            response=ScoreResponse,
            statuses=GENERATE_STATUSES,
        ),
    ),
    Route(
        "POST",
        "/v1/rerank",
        rerank,
        Operation(
            id="rerank",
            summary="Documents in order, those that answer the query best first",
            tag="embeddings",
            request=RerankRequest,
            example=_DOCUMENTS,
            response=RerankResponse,
            statuses=GENERATE_STATUSES,
        ),
    ),
    Route(
        "POST",
        "/get_ppl",
        perplexity,
        Operation(
            id="get_ppl",
            summary="The mean loss of a text",
            tag="tokens",
            request=PerplexityRequest,
            example={"input": "two steps to build a house"},
            response=PerplexityResponse,
            statuses=GENERATE_STATUSES,
        ),
    ),
]
