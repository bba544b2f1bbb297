"""GET /, /chat and /web/{name}: the pages, held in memory, no build step, nothing from outside."""

from __future__ import annotations

import asyncio
import hashlib
import mimetypes
from collections.abc import AsyncIterator
from dataclasses import dataclass
from importlib import resources

from aiohttp import hdrs, web

from lmserve.errors import NotFound
from lmserve.protocol.openapi import Operation
from lmserve.server.routes.route import Route

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True, slots=True)
class Page:
    body: bytes
    content_type: str
    etag: str


PAGES = web.AppKey("pages", dict[str, Page])


async def pages(app: web.Application) -> AsyncIterator[None]:
    """Cleanup context: the files are read once, at the start, away from the loop."""
    app[PAGES].update(await asyncio.to_thread(_load))
    yield


def _load() -> dict[str, Page]:
    """Every file of `server/web`, by name."""
    return {
        file.name: _page(file.name, file.read_bytes())
        for file in resources.files("lmserve.server").joinpath("web").iterdir()
        if file.is_file() and not file.name.startswith((".", "_"))
    }


def _page(name: str, body: bytes) -> Page:
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return Page(body, kind, hashlib.sha256(body).hexdigest()[:32])


def respond(request: web.Request, name: str) -> web.StreamResponse:
    page = request.app[PAGES].get(name)
    if page is None:
        raise NotFound(f"there is no page {name[:100]!r}")
    matches = request.if_none_match or ()
    fresh = any(etag.value in (page.etag, "*") for etag in matches)
    response = web.Response(status=304) if fresh else web.Response(body=page.body)
    if not fresh:
        response.content_type = page.content_type
        if page.content_type.startswith(("text/", "application/javascript")):
            response.charset = "utf-8"
    response.etag = page.etag
    response.headers[hdrs.CACHE_CONTROL] = "no-cache"  # kept, but asked for again by its etag
    response.headers["Content-Security-Policy"] = POLICY
    response.headers["Referrer-Policy"] = "no-referrer"
    return response


async def index(request: web.Request) -> web.StreamResponse:
    return respond(request, "index.html")


async def chat(request: web.Request) -> web.StreamResponse:
    return respond(request, "chat.html")


async def file(request: web.Request) -> web.StreamResponse:
    return respond(request, request.match_info["name"])


ROUTES = [
    Route(
        "GET",
        "/",
        index,
        Operation(
            id="index", summary="The API documentation", tag="pages", content_type="text/html"
        ),
        open=True,
        part="docs",
    ),
    Route(
        "GET",
        "/chat",
        chat,
        Operation(
            id="chat_page", summary="Chat in the browser", tag="pages", content_type="text/html"
        ),
        open=True,
        part="docs",
    ),
    Route(
        "GET",
        "/web/{name}",
        file,
        Operation(
            id="web_file",
            summary="A file of the pages",
            tag="pages",
            content_type="*/*",
            statuses=(404,),
        ),
        open=True,
        part="docs",
    ),
]
