"""What is being typed on a connection, run ahead; told once all of it is."""

from __future__ import annotations

import asyncio

import msgspec
from aiohttp import web

from lmserve.edge.socket.writer import Writer
from lmserve.protocol import socket as wire
from lmserve.protocol.drafts import DraftReady
from lmserve.protocol.sessions import message_id
from lmserve.server.keys import ANSWERS, DRAFTS
from lmserve.server.routes.drafts import change, session_draft
from lmserve.server.routes.session_views import key_of
from lmserve.server.socket.responses import Responses
from lmserve.service.warm.drafts import Draft


class Drafting:
    """That of one connection."""

    def __init__(self, app: web.Application, owner: str, responses: Responses, writer: Writer):
        self._app = app
        self._owner = owner
        self._responses = responses
        self._writer = writer
        self._awaited: dict[Draft, asyncio.Task[None]] = {}

    async def change(self, event: wire.Draft) -> bytes:
        event.check()
        session = event.session
        if event.previous_response_id is not None:
            session = await self._follow(event, event.previous_response_id)
        draft = await change(self._app[DRAFTS], key_of(self._owner, session or ""), event)
        if draft.state != "off" and draft not in self._awaited:
            self._awaited[draft] = asyncio.create_task(self._tell_ready(draft))
        return msgspec.json.encode(session_draft(draft))

    def close(self) -> None:
        for task in self._awaited.values():
            task.cancel()

    async def _follow(self, event: wire.Draft, id: str) -> str:
        """The session of that response, after which the turn will come."""
        await self._responses.check(id, "previous_response_id")
        record = await self._app[ANSWERS].record(self._owner, id)
        if record.message_id is not None:
            event.after = message_id(record.message_id)
        return record.session

    async def _tell_ready(self, draft: Draft) -> None:
        try:
            if await draft.ready():
                event = DraftReady(
                    session=draft.key.id,
                    num_tokens=draft.num_tokens,
                    cached_tokens=draft.cached_tokens,
                )
                await self._writer.write(msgspec.json.encode(event))
        except ConnectionResetError:
            pass  # nobody is left to tell
        finally:
            del self._awaited[draft]
