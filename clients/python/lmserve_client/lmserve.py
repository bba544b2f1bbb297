"""`Lmserve`: conversations that the server keeps, over one WebSocket that mends itself."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Union

from lmserve_client.answer import Answer, Input
from lmserve_client.draft import Draft
from lmserve_client.errors import APIResponseError
from lmserve_client.lane import Lane
from lmserve_client.link import Link
from lmserve_client.objects import Message, Named, Response, id_of
from lmserve_client.rest import Rest
from lmserve_client.sessions import Place, Sessions, new_id, place
from lmserve_client.target import Target, Verify
from lmserve_client.types import JSONObject
from lmserve_client.verbs import given

Said = Union[str, Message, Response, Answer]  # an answer, by its response or its message


class Lmserve:
    """A client of one server: `async with Lmserve(url) as client`, or `await client.aclose()`.

    Lives on the loop that it is first used on."""

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        connect_timeout_s: float = 10.0,
        read_timeout_s: float | None = 600.0,
        reconnect_within_s: float = 60.0,
        silence_s: float = 20.0,
        verify: Verify = True,
        websocket: bool = True,
    ):
        """`reconnect_within_s`: an outage that lasts longer ends what runs with
        APIConnectionError. `silence_s`: a WebSocket on which nothing is heard for twice this long,
        a ping having been sent, is taken for lost. `verify`: False, or a context of your own, for
        certificates that nobody vouches for. `websocket`: False goes over HTTP from the beginning;
        else that is done where something on the way lets no WebSocket pass."""
        target = Target(
            url.rstrip("/"),
            api_key,
            connect_timeout_s,
            read_timeout_s,
            reconnect_within_s,
            silence_s,
            verify,
        )
        self._rest = Rest(target)
        self._link = Link(target, self._rest, http_only=not websocket)
        self._link.on_other = self._on_other
        self._drafts: dict[str, Draft] = {}
        self.sessions = Sessions(self._link)

    async def respond(
        self,
        input: Input | None = None,
        *,
        session: Named | None = None,
        previous: str | Response | Answer | None = None,
        after: Place | None = None,
        edit: str | Message | None = None,
        regenerate: Said | None = None,
        continue_: Said | None = None,
        instructions: str | None = None,
        model: str | None = None,
        max_output_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        priority: int | None = None,
        deadline_s: float | None = None,
        background: bool | None = None,
        store: bool | None = None,
        generate: bool | None = None,
        idempotency_key: str | None = None,
        **fields: Any,
    ) -> Answer:
        """Asks for an answer. Returns when the server has taken it on: what was said is kept from
        then on, whatever happens. Raises APIStatusError where it is refused.

        `session`: its next turn. `previous`: the answer that this follows; two may follow the same.
        Neither: a new session begins (`answer.session`). In a session: `after` names the message
        to follow, `edit` the one whose place the input takes, `regenerate` the answer to make
        again, `continue_` the answer to go on with where it stopped; the last two go without
        `input`. Further fields go into the request as they are."""
        if session is not None and input is not None and id_of(session) in self._drafts:
            self._drafts[id_of(session)].clear()
        body: JSONObject = given(
            {
                "input": input if input is None or isinstance(input, str) else list(input),
                "conversation": None if session is None else id_of(session),
                "previous_response_id": None if previous is None else id_of(previous),
                "after": None if after is None else place(after),
                "edit": None if edit is None else id_of(edit),
                "regenerate": None if regenerate is None else id_of(regenerate),
                "continue": None if continue_ is None else id_of(continue_),
                "instructions": instructions,
                "model": model,
                "max_output_tokens": max_output_tokens,
                "temperature": temperature,
                "top_p": top_p,
                "stop": stop if stop is None or isinstance(stop, str) else list(stop),
                "seed": seed,
                "priority": priority,
                "deadline_s": deadline_s,
                "background": background,
                "store": store,
                "generate": generate,
                "idempotency_key": idempotency_key or new_id("key_"),
                **fields,
            }
        )
        return await self._open(Lane(self._link.name("a"), body))

    async def answer(self, id: str | Response) -> Answer:
        """One that runs or ran, from its first event on: of another client, or of this program
        before it was started anew."""
        return await self._open(Lane(self._link.name("a"), {}, id_of(id)))

    def draft(self, session: Named) -> Draft:
        """Of what is being typed there: `draft.set(text)` at each key."""
        id = id_of(session)
        if id not in self._drafts:
            self._drafts[id] = Draft(self._link, id)
        return self._drafts[id]

    @property
    def num_connections(self) -> int:
        """WebSockets so far: more than one means that some were lost."""
        return self._link.num_connections

    async def aclose(self) -> None:
        """What runs in the server goes on there for a while: `answer` finds it again."""
        for draft in self._drafts.values():
            await draft.aclose()
        await self._link.aclose()
        await self._rest.aclose()

    async def __aenter__(self) -> Lmserve:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _open(self, lane: Lane) -> Answer:
        await self._link.open(lane)
        while not lane.events and not lane.ended:
            await lane.changed()
        if lane.error is not None:
            raise lane.error
        if lane.response_id is None:
            raise APIResponseError("the server ended an answer that it had not begun")
        return Answer(self._link, lane)

    def _on_other(self, item: JSONObject) -> None:
        draft = self._drafts.get(str(item.get("session")))
        if draft is not None and item.get("type") == "session.draft.ready":
            draft.on_ready(item)
