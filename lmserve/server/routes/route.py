"""One row of the route table: where, who answers, and what the document says of it."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from lmserve.protocol.openapi import Operation
from lmserve.server.middlewares import Handler

GENERATE_STATUSES = (400, 404, 413, 429, 500, 503)


@dataclass(frozen=True, slots=True)
class Route:
    method: str
    path: str
    handler: Handler
    operation: Operation


def json_response(body: bytes, status: int = 200) -> web.Response:
    return web.Response(body=body, status=status, content_type="application/json")
