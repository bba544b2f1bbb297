"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from uuid import uuid4

from aiohttp import web

from lmserve.protocol.encode import CompletionEncoder, Head
from lmserve.protocol.openai.completion_answers import CompletionResponse, CompletionStreamResponse
from lmserve.protocol.openai.completion_teller import CompletionTeller
from lmserve.protocol.openai.completions import CompletionRequest
from lmserve.protocol.openapi import Operation
from lmserve.protocol.usage import UsageInfo
from lmserve.server.routes import telling
from lmserve.server.routes.generating import HEADERS, STATUSES, Plain, Reply, answer
from lmserve.server.routes.route import Route
from lmserve.service.generate import Generation, best
from lmserve.types import Usage


async def completions(request: web.Request) -> web.StreamResponse:
    return await answer(request, PLAIN)


def reply(asked: CompletionRequest, generations: Sequence[Generation]) -> Reply:
    first, extras = generations[0], asked.extras
    head = Head(f"cmpl-{uuid4().hex}", first.created, first.model)
    encoder = CompletionEncoder(head, include_usage=extras.include_usage)

    def usage(usages: Sequence[Usage]) -> bytes:
        if not extras.include_usage:
            return b""
        return encoder.usage(UsageInfo.of(*usages, num_prompts=asked.num_prompts))

    if extras.any:
        tellers = _tellers(asked, generations, head)
        tell, end = telling.tell_richly(tellers), telling.end_richly(tellers)
    else:
        tell, end = encoder.delta, encoder.final
    return Reply(
        chunks=partial(telling.chunks, generations, tell, end, usage),
        follow=telling.follow_one(generations, tell),
        whole=partial(whole, asked, generations, head),
    )


def _tellers(
    asked: CompletionRequest, generations: Sequence[Generation], head: Head
) -> list[CompletionTeller]:
    num_answers = len(generations) // asked.num_prompts
    return [
        CompletionTeller(
            head,
            index,
            generation,
            asked.extras,
            generation.vocabulary,
            prompt=asked.prompt_text(index // num_answers, generation.vocabulary),
            skip_special=asked.skip_special_tokens is not False,
        )
        for index, generation in enumerate(generations)
    ]


async def whole(asked: CompletionRequest, generations: Sequence[Generation], head: Head) -> bytes:
    tellers = _tellers(asked, generations, head)
    dones = await telling.whole(generations, tellers)

    def encode() -> bytes:
        choices = []
        for index, picked in enumerate(_chosen(asked, generations)):
            tellers[picked].index = index
            choices.append(tellers[picked].choice(dones[picked]))
        usage = UsageInfo.of(*[done.usage for done in dones], num_prompts=asked.num_prompts)
        return tellers[0].response(choices, usage)

    return await telling.encoded(asked.extras, encode)


def _chosen(asked: CompletionRequest, generations: Sequence[Generation]) -> list[int]:
    """Which of them are told: all, or the best answers to each prompt."""
    num_answers = len(generations) // asked.num_prompts
    if num_answers == asked.n_or_1:
        return [*range(len(generations))]
    places = {generation: place for place, generation in enumerate(generations)}
    groups = [
        generations[start : start + num_answers]
        for start in range(0, len(generations), num_answers)
    ]
    return [places[one] for group in groups for one in best(group, asked.n_or_1)]


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
