"""What can be done with sessions, whatever the transport: one function a call, over the same
structs, giving the same JSON."""

from __future__ import annotations

from functools import partial

import msgspec
from msgspec import UNSET, UnsetType

from lmserve.errors import InvalidField, SessionNotFound
from lmserve.protocol import sessions as wire
from lmserve.server.routes.session_views import (
    aside,
    key_of,
    message,
    message_list,
    naming,
    place,
    place_or_head,
    renaming,
    session,
    within,
)
from lmserve.service.answers.answers import Answers
from lmserve.service.sessions.sessions import SessionInfo, SessionKey, Sessions

Said = tuple[bytes, str]  # an object of the protocol as JSON, and the session it is about


class SessionCalls:
    """Those of one owner."""

    def __init__(self, sessions: Sessions, answers: Answers, owner: str):
        self._sessions = sessions
        self._answers = answers
        self._owner = owner

    async def create(self, asked: wire.SessionCreate) -> Said:
        asked.check()
        key = self._new_key(asked.id)
        info = await self._sessions.create(key, title=asked.title or None, messages=asked.plain())
        return _say(self._session(info), key)

    async def list(self, limit: int = wire.DEFAULT_LIMIT, after: str | None = None) -> bytes:
        try:
            infos, has_more = await self._sessions.list(self._owner, limit=limit, after=after)
        except SessionNotFound as error:
            error.param = "after"
            raise
        return msgspec.json.encode(
            wire.SessionList(
                data=[self._session(info) for info in infos],
                first_id=infos[0].id if infos else None,
                last_id=infos[-1].id if infos else None,
                has_more=has_more,
            )
        )

    async def retrieve(self, id: str) -> Said:
        key = self._key(id)
        return _say(self._session(await self._sessions.info(key)), key)

    async def update(self, id: str, asked: wire.SessionUpdate, *, head_param: str = "head") -> Said:
        key, head = self._key(id), asked.head
        title = UNSET if asked.title is None else asked.title or None
        to = head if isinstance(head, UnsetType | None) else place(head, head_param)
        with naming(head or None, head_param):
            info = await self._sessions.update(key, title=title, head=to)
        return _say(self._session(info), key)

    async def delete(self, id: str) -> Said:
        key = self._key(id)
        await self._sessions.delete(key)
        return _say(wire.SessionDeleted(id=key.id), key)

    async def messages(self, id: str, at: str | None = None, *, tree: bool = False) -> Said:
        key = self._key(id)
        if tree and at is not None:
            raise InvalidField("at goes only without tree: leave out one of them", param="at")
        if tree:
            nodes = await self._sessions.nodes(key)
        else:
            with naming(at, "at"):
                nodes = await self._sessions.line(key, None if at is None else message(at, "at"))
        return await message_list(nodes), key.id

    async def append(self, id: str, asked: wire.SessionAppend) -> Said:
        key, after = self._key(id), place_or_head(asked.after, "after")
        with naming(asked.after, "after"), renaming("messages"):
            added = await self._sessions.add(key, asked.plain(), after=after)
        return await message_list(added), key.id

    async def fork(self, id: str, asked: wire.SessionFork) -> Said:
        key = self._key(id)
        asked.check()
        at = None if asked.at is None else message(asked.at, "at")
        new = self._new_key(asked.id)
        with naming(asked.at, "at"):
            info = await self._sessions.fork(key, new, at=at, title=asked.title)
        return _say(self._session(info), new)

    async def cancel(self, id: str) -> Said:
        """At once: it waits for no turn."""
        key = self._key(id)
        cancelled = self._sessions.cancel(key)
        if not cancelled:
            await self._sessions.info(key)  # a session there must be
        return _say(wire.SessionCancelled(cancelled=cancelled), key)

    async def export(self, id: str) -> Said:
        key = self._key(id)
        exported = await self._sessions.export(key)
        encode = partial(msgspec.json.encode, exported)
        return await aside(len(exported["messages"]), encode), key.id

    async def import_(self, asked: wire.SessionImport) -> Said:
        asked.check()
        key = self._new_key(asked.id)
        exported = await aside(len(asked.session.messages), asked.session.plain)
        with within("session"):
            info = await self._sessions.import_(key, exported)
        return _say(self._session(info), key)

    def _session(self, info: SessionInfo) -> wire.Session:
        running = self._answers.of_session(self._owner, info.id)
        return session(info, [answer.stream.id for answer in running])

    def _key(self, id: str) -> SessionKey:
        return key_of(self._owner, id)

    def _new_key(self, id: str | None) -> SessionKey:
        return SessionKey(self._owner, id or self._sessions.new_session_id())


def _say(answer: msgspec.Struct, key: SessionKey) -> Said:
    return msgspec.json.encode(answer), key.id
