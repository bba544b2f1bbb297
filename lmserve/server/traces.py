"""Has an application's requests and answers traced."""

from __future__ import annotations

from collections.abc import AsyncIterator

from aiohttp import web

from lmserve.server.keys import SERVICE
from lmserve.tracing.answers import AnswerSpans
from lmserve.tracing.http import make_middleware
from lmserve.tracing.tracing import Tracing


def trace(app: web.Application, endpoint: str) -> None:
    """To the collector there. Raises SetupError where the extra `otel` is missing."""
    tracing = Tracing(endpoint)
    app.middlewares.insert(1, make_middleware(tracing))  # inside `request_id`
    app[SERVICE].on_start = AnswerSpans(tracing).follow

    async def opened(app: web.Application) -> AsyncIterator[None]:
        await tracing.open()
        yield
        await tracing.close()

    app.cleanup_ctx.insert(0, opened)  # and closed after all that ends with the application
