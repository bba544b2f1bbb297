"""/v1/sessions/{session_id}/draft: what is being typed, run ahead."""

from __future__ import annotations

import msgspec
from aiohttp import web

from lmserve.protocol import drafts as wire
from lmserve.protocol.openapi import Operation
from lmserve.server import body
from lmserve.server.keys import DRAFTS
from lmserve.server.routes.route import Route, json_response
from lmserve.server.routes.session_views import (
    SESSION_HEADER,
    naming,
    place_or_head,
    session_key,
)
from lmserve.service.store.rows import SessionKey
from lmserve.service.warm.drafts import Change, Draft, Drafts


async def change(drafts: Drafts, key: SessionKey, asked: wire.DraftBody) -> Draft:
    """For every transport."""
    after = place_or_head(asked.after, "after")
    with naming(asked.after, "after"):
        return await drafts.set(key, after, Change(asked.text, asked.truncate, asked.append))


def session_draft(draft: Draft) -> wire.SessionDraft:
    return wire.SessionDraft(
        session=draft.key.id,
        num_chars=len(draft.text),
        num_tokens=draft.num_tokens,
        cached_tokens=draft.cached_tokens,
        state=draft.state,
    )


async def set_(request: web.Request) -> web.Response:
    key = session_key(request)
    async with body.reading(request, wire.DraftBody) as asked:
        return _say(session_draft(await change(request.app[DRAFTS], key, asked)), key)


async def drop(request: web.Request) -> web.Response:
    key = session_key(request)
    return _say(wire.DraftDropped(session=key.id, deleted=request.app[DRAFTS].drop(key)), key)


def _say(answer: wire.SessionDraft | wire.DraftDropped, key: SessionKey) -> web.Response:
    response = json_response(msgspec.json.encode(answer))
    response.headers[SESSION_HEADER] = key.id
    return response


_PATH = "/v1/sessions/{session_id}/draft"
ROUTES = [
    Route(
        "POST",
        _PATH,
        set_,
        Operation(
            id="set_session_draft",
            summary="Tell what is being typed, before it is sent",
            tag="sessions",
            description="The server runs it ahead while nobody else has work, so that the answer "
            "begins sooner. It is kept nowhere, and changes no answer. The turn ends it; so do "
            "some minutes without a change.",
            request=wire.DraftBody,
            example={"text": "What is the capital of Fra"},
            response=wire.SessionDraft,
            statuses=(400, 404, 409, 413, 429, 500, 503),
        ),
    ),
    Route(
        "DELETE",
        _PATH,
        drop,
        Operation(
            id="delete_session_draft",
            summary="Nothing will be sent: forget what was typed",
            tag="sessions",
            response=wire.DraftDropped,
            statuses=(404,),
        ),
    ),
]
