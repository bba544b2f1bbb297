"""How the plain routes answer: on one connection, with which the answer ends; or, where the
client asks for it in a header, kept, so that it can be read again and joined."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec
from aiohttp import web

from lmserve.edge.keyring import OWNER
from lmserve.errors import InvalidField
from lmserve.protocol.common import SamplingFields
from lmserve.protocol.openapi import Query
from lmserve.server import body, sse
from lmserve.server.idempotency import HEADER as IDEMPOTENCY_HEADER
from lmserve.server.idempotency import idempotency
from lmserve.server.keys import RESUMABLE, SERVICE, SETTINGS
from lmserve.server.routes.route import GENERATE_STATUSES, json_response
from lmserve.service.generate import Generation
from lmserve.service.streams.resumable import Events, Key, Recipe, Telling
from lmserve.service.streams.stream import StreamEvent
from lmserve.types import GenerateRequest

RESUMABLE_HEADER = "X-Resumable"

T = TypeVar("T", bound=SamplingFields)

HEADERS = (
    Query(
        RESUMABLE_HEADER,
        "With `stream`: the answer goes on for a while when its client is cut off, and `GET "
        "/v1/streams/{stream_id}` has the rest. Its id is in `X-Stream-Id`; each event has its "
        "number as `id`.",
        default=False,
    ),
    Query(
        IDEMPOTENCY_HEADER,
        "1 to 255 characters, your name of this request: sent again, it joins the answer that is "
        "being made, or has the finished one while it is kept.",
    ),
)
STATUSES = (*GENERATE_STATUSES, 409)

_SWITCH = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer in the words of its route, told in one of two ways."""

    chunks: Callable[[], AsyncGenerator[bytes, None]]  # of server-sent events; the last ends it
    follow: sse.Follow | None
    whole: Callable[[], Awaitable[bytes]]  # JSON


@dataclass(frozen=True, slots=True)
class Plain(Generic[T]):
    """What is a route's own."""

    body: type[T]
    requests: Callable[[T, str], Sequence[GenerateRequest]]  # of this owner
    reply: Callable[[T, Sequence[Generation]], Reply]


async def answer(request: web.Request, plain: Plain[T]) -> web.StreamResponse:
    headers = request.headers
    if IDEMPOTENCY_HEADER in headers or (RESUMABLE_HEADER in headers and _is_resumable(request)):
        return await _keep(request, plain)
    app = request.app
    async with body.reading(request, plain.body) as asked:
        generations = await app[SERVICE].generate_all(plain.requests(asked, request[OWNER]))
    with ExitStack() as leases:
        for generation in generations:
            leases.enter_context(generation.lease())
        reply = plain.reply(asked, generations)
        if asked.stream:
            return await sse.send(request, reply.chunks(), reply.follow)
        whole = await reply.whole()
    return json_response(whole)


async def whole(
    app: web.Application, plain: Plain[T], asked: T, owner: str
) -> tuple[bytes, Sequence[Generation]]:
    """The answer and what it was made of, for one who is not at the other end of a connection."""
    generations = await app[SERVICE].generate_all(plain.requests(asked, owner))
    with ExitStack() as leases:
        for generation in generations:
            leases.enter_context(generation.lease())
        return await plain.reply(asked, generations).whole(), generations


# --- kept ---------------------------------------------------------------------------------


async def _keep(request: web.Request, plain: Plain[T]) -> web.StreamResponse:
    owner = request[OWNER]
    keep_alive_s = request.app[SETTINGS].server.keep_alive_s
    async with body.reading(request, plain.body) as asked:
        recipe = _recipe(request.app, plain, asked, owner)
        key = await _key(request, asked, owner)
        making = request.app[RESUMABLE].make(owner, recipe, key)
        await making.started()
    await making.begun((keep_alive_s or None) if asked.stream else None)
    if asked.stream:
        return await sse.send_stream(request, making.stream)
    (event,) = making.stream.since(0)
    return json_response(event.data)


def _recipe(app: web.Application, plain: Plain[T], asked: T, owner: str) -> Recipe:
    requests = plain.requests(asked, owner)
    tell = _tell_streamed if asked.stream else _tell_whole
    return Recipe(
        start=lambda: app[SERVICE].generate_all(requests),
        tell=lambda generations: tell(plain.reply(asked, generations)),
        tell_failure=lambda error: _events(sse.end_event(error)),
    )


def _tell_streamed(reply: Reply) -> Telling:
    async def events() -> AsyncGenerator[Events, None]:
        async for chunk in reply.chunks():
            yield _events(chunk)

    follow = reply.follow
    if follow is None:
        return Telling(events())
    return Telling(events(), lambda show: follow(lambda chunk: show(_events(chunk))))


def _tell_whole(reply: Reply) -> Telling:
    async def events() -> AsyncGenerator[Events, None]:
        yield (StreamEvent(b"", await reply.whole()),)

    return Telling(events())


def _events(chunk: bytes) -> Events:
    """A chunk is one or more of `data: …`."""
    return [
        StreamEvent(b"", event.removeprefix(b"data: ")) for event in chunk.split(b"\n\n") if event
    ]


# --- headers ------------------------------------------------------------------------------


def _is_resumable(request: web.Request) -> bool:
    given = request.headers[RESUMABLE_HEADER]
    resumable = _SWITCH.get(given.lower())
    if resumable is None:
        raise InvalidField(
            f"{RESUMABLE_HEADER} is {given[:30]!r}: send true, or leave it out",
            param=RESUMABLE_HEADER,
        )
    return resumable


async def _key(request: web.Request, asked: msgspec.Struct, owner: str) -> Key | None:
    named = await idempotency(request, asked)
    return None if named is None else Key(owner, request.path, *named)
