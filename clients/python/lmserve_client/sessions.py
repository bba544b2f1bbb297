"""`client.sessions`: conversations that the server keeps, each a tree of messages."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Union

from lmserve_client import objects, verbs
from lmserve_client.errors import APIStatusError
from lmserve_client.link import Link
from lmserve_client.objects import Message, Named, Response, Session, SessionPage, id_of
from lmserve_client.types import JSONObject
from lmserve_client.verbs import given

Messages = list[Message]  # `list` is a verb below
Place = Union[str, Message, Response]  # of a tree: a message, an answer, or "root"


class Sessions:
    """Where a method takes a session or a message, its id does as well."""

    def __init__(self, link: Link):
        self._link = link

    async def create(
        self,
        *,
        id: str | None = None,
        title: str | None = None,
        messages: Sequence[Mapping[str, Any]] | None = None,
    ) -> Session:
        """A new one, with the messages that it begins with, if any."""
        fields = given({"title": title, "messages": messages and list(messages)})
        return await self._new(verbs.CREATE, id, fields)

    async def list(self, *, limit: int | None = None, after: str | None = None) -> SessionPage:
        """Those used last; `after` the last of the page before."""
        told = await self._link.call(verbs.LIST, given({"limit": limit, "after": after}))
        return objects.session_page(told)

    async def get(self, session: Named) -> Session:
        return objects.session(await self._ask(verbs.GET, session))

    async def rename(self, session: Named, title: str) -> Session:
        return objects.session(await self._ask(verbs.UPDATE, session, title=title))

    async def rollback(self, session: Named, to: Place) -> Session:
        """The next turn follows that message, in this or another branch. Nothing is deleted."""
        return objects.session(await self._ask(verbs.UPDATE, session, head=place(to)))

    async def delete(self, session: Named) -> None:
        """With all its branches, at once."""
        await self._ask(verbs.DELETE, session)

    async def messages(
        self, session: Named, *, at: Place | None = None, tree: bool = False
    ) -> Messages:
        """The line from the root to the head, or to `at`; or all messages, each after its
        parent."""
        where = {"at": None if at is None else place(at), "tree": tree or None}
        return objects.messages(await self._ask(verbs.MESSAGES, session, **where))

    async def append(
        self,
        session: Named,
        messages: Sequence[Mapping[str, Any]],
        *,
        after: Place | None = None,
    ) -> Messages:
        """Adds messages that are not answered: at the head, or after another. Where the
        connection breaks over it nobody knows whether they were: APIConnectionError."""
        where = None if after is None else place(after)
        told = await self._ask(verbs.APPEND, session, messages=list(messages), after=where)
        return objects.messages(told)

    async def fork(
        self,
        session: Named,
        *,
        at: Place | None = None,
        id: str | None = None,
        title: str | None = None,
    ) -> Session:
        """A new one with the line up to the head, or to `at`."""
        fields = given({"at": None if at is None else place(at), "title": title})
        return await self._new(verbs.FORK, id, {"session": id_of(session), **fields})

    async def cancel(self, session: Named) -> bool:
        """Stops what runs in it; False: nothing did."""
        return bool((await self._ask(verbs.CANCEL_SESSION, session)).get("cancelled"))

    async def export(self, session: Named) -> JSONObject:
        """All of it, to be kept or taken elsewhere."""
        return await self._ask(verbs.EXPORT, session)

    async def import_(self, exported: Mapping[str, Any], *, id: str | None = None) -> Session:
        """A new one, as one was exported."""
        return await self._new(verbs.IMPORT, id, {"session": dict(exported)})

    async def _new(self, verb: verbs.Verb, id: str | None, fields: JSONObject) -> Session:
        """With an id made here, so that what was lost on the way can be asked again."""
        named = id or new_id("sess_")
        try:
            return objects.session(await self._link.call(verb, {"id": named, **fields}))
        except APIStatusError as error:
            if id is not None or error.code != "session_exists":
                raise
            return await self.get(named)  # made by the first try, whose answer was lost

    async def _ask(self, verb: verbs.Verb, session: Named, **fields: Any) -> JSONObject:
        return await self._link.call(verb, {"session": id_of(session), **given(fields)})


def place(of: Place) -> str:
    if isinstance(of, Response):
        return of.message_id or "root"
    return id_of(of)


def new_id(prefix: str) -> str:
    """Shorter than a server's own, in which a distributor would look for the node that gave it."""
    return prefix + secrets.token_hex(12)
