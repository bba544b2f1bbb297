"""One row of the route table: where, who answers, and what the document says of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from aiohttp import web

from lmserve.edge.key_file import Scope
from lmserve.edge.middlewares import ErrorBody, Handler
from lmserve.protocol.openapi import Operation

GENERATE_STATUSES = (400, 404, 413, 429, 500, 503, 504)


@dataclass(frozen=True, slots=True)
class Route:
    method: str
    path: str
    handler: Handler
    operation: Operation
    open: bool = False  # answers without an API key too
    scope: Scope = "use"  # what the key must allow; all others are behind the admin port, too
    acts: bool = False  # though a GET: no HEAD, no other web page's link or image may do it
    part: Literal["docs", "metrics"] | None = None  # served only with this setting
    error_body: ErrorBody | None = None  # in the words of another API than OpenAI's


def json_response(body: bytes, status: int = 200) -> web.Response:
    return web.Response(body=body, status=status, content_type="application/json")
