"""What can be done with answers that are kept, whatever the transport: one function a call, over
the same structs, giving the same objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from lmserve.errors import (
    AnswerNotFound,
    InvalidField,
    MessageNotFound,
    PreviousNotFound,
    SessionNotFound,
)
from lmserve.protocol.responses.changes import ResponseSteer, ResponseUpdate
from lmserve.protocol.responses.items import ResponseItem, ResponseItemList
from lmserve.protocol.responses.objects import (
    ResponseDeleted,
    ResponseObject,
    ResponseSteered,
)
from lmserve.protocol.responses.requests import ResponseCreate, ResponseFields
from lmserve.server.responses.item_views import input_items
from lmserve.server.responses.views import response_of
from lmserve.server.routes.session_views import key_of, message, naming, place_or_head, renaming
from lmserve.service.answers.answers import Answer, Answers
from lmserve.service.answers.records import Ask, Record
from lmserve.service.limits import check_metadata
from lmserve.service.sessions.sessions import Node, Sessions


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in a tree the answer goes."""

    session: str | None
    after: int | None | UnsetType = UNSET
    continues: int | None = None


class ResponseCalls:
    """Those of one owner."""

    def __init__(self, answers: Answers, sessions: Sessions, owner: str):
        self._answers = answers
        self._sessions = sessions
        self._owner = owner

    async def begin(
        self,
        asked: ResponseFields,
        session: str | None = None,
        *,
        idempotency: tuple[str, bytes] | None = None,
    ) -> Answer:
        """Starts it. `session`: whose turn it is, where the body does not say it. Take a reader
        of its stream before the next await."""
        asked.check()
        check_metadata(asked.metadata or {})
        previous = None
        if isinstance(asked, ResponseCreate):
            session, previous = asked.session, asked.previous_response_id
            if session is not None:
                key_of(self._owner, session, "conversation")
        told = asked.told()
        if isinstance(asked, ResponseCreate) and asked.conversation is not None:
            told["conversation"] = {"id": session}
        with _naming(asked, previous), renaming("input"):
            place = await self._place(asked, session)
            ask = Ask(
                owner=self._owner,
                request=asked.to_generate(self._owner),
                session=place.session,
                previous=previous,
                after=place.after,
                continues=place.continues,
                instructions=asked.instructions or None,
                keep=asked.is_kept,
                background=bool(asked.background),
                generate=asked.generate is not False,
                told=told,
                idempotency=idempotency,
            )
            with naming(*_named(asked)):
                return await self._answers.begin(ask)

    async def retrieve(self, id: str) -> ResponseObject:
        return await response_of(await self._answers.record(self._owner, id))

    async def cancel(self, id: str) -> ResponseObject:
        return await response_of(await self._answers.cancel(self._owner, id))

    async def delete(self, id: str) -> ResponseDeleted:
        await self._answers.delete(self._owner, id)
        return ResponseDeleted(id=id)

    async def steer(self, id: str, asked: ResponseSteer) -> ResponseSteered:
        given = asked.input
        with renaming("input"):
            steer = await self._answers.steer(self._owner, id, asked.messages(), _plain(given))
        return ResponseSteered(id=steer, previous_response_id=id)

    async def update(self, id: str, asked: ResponseUpdate) -> ResponseObject:
        try:
            await self._answers.update(self._owner, id, asked.changes(), asked.told())
        except InvalidField as error:
            if error.param == "max_tokens":
                error.message = error.message.replace("max_tokens", "max_output_tokens")
                error.param = "max_output_tokens"
            raise
        return await self.retrieve(id)

    async def input_items(
        self, id: str, *, limit: int, after: str | None = None, ascending: bool = False
    ) -> ResponseItemList:
        nodes = await self._answers.input(self._owner, id)
        items = [item for node in nodes for item in input_items(node)]
        if not ascending:
            items.reverse()
        begin = 0 if after is None else _index(items, after) + 1
        data = items[begin : begin + limit]
        return ResponseItemList(
            data=data,
            first_id=data[0].id if data else None,
            last_id=data[-1].id if data else None,
            has_more=begin + limit < len(items),
        )

    async def _place(self, asked: ResponseFields, session: str | None) -> _Place:
        if asked.regenerate is not None:
            return await self._again(asked.regenerate, session)
        if asked.continue_ is not None:
            return await self._further(asked.continue_, session)
        if asked.edit is not None:
            assert session is not None
            node = await self._node(session, asked.edit, "edit")
            return _Place(session, node.parent)
        return _Place(session, place_or_head(asked.after, "after"))

    async def _again(self, id: str, session: str | None) -> _Place:
        """Where this answer was made."""
        if id.startswith("resp_"):
            record = await self._record(id, session, "regenerate")
            before = await self._answers.input(self._owner, id)
            return _Place(record.session, before[-1].id if before else None)
        assert session is not None
        return _Place(session, (await self._answer(session, id, "regenerate")).parent)

    async def _further(self, id: str, session: str | None) -> _Place:
        """Where this answer ends."""
        if id.startswith("resp_"):
            record = await self._record(id, session, "continue")
            return _Place(record.session, continues=record.message_id)
        assert session is not None
        return _Place(session, continues=(await self._answer(session, id, "continue")).id)

    async def _record(self, id: str, session: str | None, param: str) -> Record:
        try:
            record = await self._answers.record(self._owner, id)
        except AnswerNotFound as error:
            error.param = param
            raise
        if session is not None and record.session != session:
            raise AnswerNotFound(
                f"{param} is {id[:50]!r}: the session has no such response", param=param
            )
        return record

    async def _answer(self, session: str, id: str, param: str) -> Node:
        node = await self._node(session, id, param)
        if node.message["role"] != "assistant":
            raise InvalidField(
                f"{param} is {id}, which is no answer: name one of the assistant's", param=param
            )
        return node

    async def _node(self, session: str, id: str, param: str) -> Node:
        with naming(id, param):
            return await self._sessions.node(key_of(self._owner, session), message(id, param))


@contextmanager
def _naming(asked: ResponseFields, previous: str | None) -> Iterator[None]:
    """Tells of what is not there by the field that asked for it."""
    try:
        yield
    except AnswerNotFound as error:
        if previous is None:
            raise
        raise PreviousNotFound(error.message, param="previous_response_id") from None
    except MessageNotFound:
        raise
    except SessionNotFound as error:
        if isinstance(asked, ResponseCreate):
            error.param = "conversation"
        raise


def _named(asked: ResponseFields) -> tuple[str | None, str]:
    """The message that its place was named by, and the field."""
    for param, id in (
        ("continue", asked.continue_),
        ("regenerate", asked.regenerate),
        ("edit", asked.edit),
    ):
        if id is not None:
            return id, param
    return asked.after, "after"


def _plain(given: Any) -> Any:
    """As it came, without what was null."""
    if isinstance(given, str):
        return given
    return _given(msgspec.to_builtins(given))


def _given(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _given(item) for name, item in value.items() if item is not None}
    return [_given(item) for item in value] if isinstance(value, list) else value


def _index(items: Sequence[ResponseItem], after: str) -> int:
    for index, item in enumerate(items):
        if item.id == after:
            return index
    raise InvalidField(f"after is {after[:50]!r}: it is no item of this input", param="after")
