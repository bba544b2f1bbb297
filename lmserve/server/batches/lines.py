"""Lines of batches, answered as their routes would: the same checks, the same words."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec
from aiohttp import web

from lmserve.errors import EngineUnavailable, InvalidField, LmserveError
from lmserve.protocol.embeddings import EmbeddingRequest
from lmserve.protocol.errors import error_body
from lmserve.protocol.scoring import RerankRequest, ScoreRequest
from lmserve.server import body
from lmserve.server.routes import chat, completions, embeddings, generating, scoring
from lmserve.service.generate import Generation
from lmserve.service.limits.turn import MAX_PRIORITY
from lmserve.types import Done

T = TypeVar("T", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Endpoint(Generic[T]):
    body: type[T]
    answer: Callable[[web.Application, T, str], Awaitable[bytes]]


class BatchLines:
    """What the service's batches ask for their answers."""

    def __init__(self, app: web.Application):
        self._app = app

    @property
    def endpoints(self) -> Collection[str]:
        return ENDPOINTS

    async def answer(self, owner: str, endpoint: str, line: bytes) -> bytes:
        """Raises LmserveError."""
        return await _answer(self._app, ENDPOINTS[endpoint], owner, line)

    def failure(self, error: LmserveError) -> bytes:
        return error_body(error)


async def _answer(app: web.Application, endpoint: Endpoint[Any], owner: str, line: bytes) -> bytes:
    async with body.holding(app, line, endpoint.body) as asked:
        if getattr(asked, "stream", None):
            raise InvalidField("stream is not for batches: leave it out", param="stream")
    asked.priority = MAX_PRIORITY
    return await endpoint.answer(app, asked, owner)


def _plain(plain: generating.Plain[Any]) -> Endpoint[Any]:
    async def answer(app: web.Application, asked: Any, owner: str) -> bytes:
        answered, generations = await generating.whole(app, plain, asked, owner)
        if any(map(_was_stopped, generations)):
            raise EngineUnavailable("the answer was stopped before its end")
        return answered

    return Endpoint(plain.body, answer)


def _was_stopped(generation: Generation) -> bool:
    """By another than its own line: it is tried again."""
    outcomes: list[object] = []
    generation.on_ended(outcomes.append)  # it has
    aborted = any(isinstance(one, Done) and one.finish_reason == "abort" for one in outcomes)
    return aborted and generation.abort_reason != "deadline"


async def _score(app: web.Application, asked: ScoreRequest, owner: str) -> bytes:
    return msgspec.json.encode(await scoring.score_answer(app, asked, owner))


async def _rerank(app: web.Application, asked: RerankRequest, owner: str) -> bytes:
    return msgspec.json.encode(await scoring.rerank_answer(app, asked, owner))


ENDPOINTS: dict[str, Endpoint[Any]] = {
    "/v1/chat/completions": _plain(chat.PLAIN),
    "/v1/completions": _plain(completions.PLAIN),
    "/v1/embeddings": Endpoint(EmbeddingRequest, embeddings.answer),
    "/v1/score": Endpoint(ScoreRequest, _score),
    "/v1/rerank": Endpoint(RerankRequest, _rerank),
}
