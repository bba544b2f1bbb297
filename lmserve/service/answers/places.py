"""Where in which tree an answer goes, and what is run for it there."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from lmserve.errors import AnswerConflict, InvalidField, MessageNotFound, SessionNotFound
from lmserve.service.answers.archive import Archive, Home
from lmserve.service.answers.records import Ask
from lmserve.service.generate import Service
from lmserve.service.prompt import ModelText
from lmserve.service.sessions import line as lines
from lmserve.service.sessions.sessions import Sessions
from lmserve.service.sessions.turns import Slot
from lmserve.service.store import answers as store_answers
from lmserve.service.store.answers import Partial
from lmserve.service.store.rows import Entry, Line, Message, SessionKey
from lmserve.service.store.store import Store
from lmserve.service.transcript import Transcript
from lmserve.types import GenerateRequest, History


@dataclass(slots=True)
class Place:
    """Whoever has it calls `leave` in the end."""

    key: SessionKey
    home: Home
    text_key: str
    line: Line = field(default_factory=Line)  # what comes before
    partial: Partial | None = None  # what is gone on with
    slot: Slot | None = None
    new: bool = True  # a session begins
    carried: Sequence[Entry] = ()  # with this line

    @property
    def after(self) -> int | None:
        """The message that the first new one follows."""
        return None if self.new else self.line.end

    def leave(self) -> None:
        """The next one's turn. Idempotent."""
        if self.slot is not None:
            self.home.turns.leave(self.slot)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run, and what of it is new."""

    request: GenerateRequest
    transcript: Transcript
    messages: Sequence[Message]
    said: str = ""  # before, of the answer that is gone on with
    said_ids: Sequence[int] = ()


class Places:
    def __init__(self, service: Service, sessions: Sessions, archive: Archive):
        self._service = service
        self._sessions = sessions
        self._archive = archive

    async def find(self, ask: Ask, slot: Slot | None) -> Place:
        """Waits for the session's turn where the ask is for one; `slot`: it is there already.
        Raises AnswerNotFound, AnswerConflict, SessionNotFound, MessageNotFound, SessionBusy,
        Overloaded."""
        text_key = _text_key(await self._service.model_text(), ask.instructions)
        home = self._archive.disk if ask.keep else self._archive.memory
        if ask.previous is not None:
            found = await self._after(ask, ask.previous, text_key, slot)
        elif ask.session is not None:
            found = await self._in_session(ask, SessionKey(ask.owner, ask.session), text_key)
        else:
            return await self._new(ask.owner, home, text_key)
        return found if found.home is home else await self._moved(found, home)

    async def plan(self, ask: Ask, place: Place) -> Plan:
        """Raises InvalidField."""
        if place.partial is not None:
            return await self._further(ask, place, place.partial)
        new = await lines.find_new(place.line, ask.request, exact=True)
        request = _extended(ask, place, new)
        if not ask.generate:
            request = dataclasses.replace(
                request, max_tokens=1, min_tokens=None, stop=(), stop_token_ids=()
            )
        return Plan(request, Transcript(), new)

    # --- places -----------------------------------------------------------------------

    async def _new(self, owner: str, home: Home, text_key: str) -> Place:
        """In a session that begins, whose first turn this is: others wait for its end."""
        key = SessionKey(owner, self._sessions.new_session_id())
        return Place(key, home, text_key, slot=await home.turns.enter(key))

    async def _after(self, ask: Ask, previous: str, text_key: str, slot: Slot | None) -> Place:
        home, record = await self._archive.find(ask.owner, previous)
        if record.ended is None:
            raise AnswerConflict(
                f"{previous} is still being made: wait for its end, or steer it",
                param="previous_response_id",
            )
        place = Place(SessionKey(ask.owner, record.session), home, text_key, slot=slot, new=False)
        ask = dataclasses.replace(ask, after=record.message_id)
        await self._load(ask, place)
        return place

    async def _in_session(self, ask: Ask, key: SessionKey, text_key: str) -> Place:
        try:
            return await self._in_turn(ask, key, text_key, self._archive.disk)
        except MessageNotFound:
            raise
        except SessionNotFound as error:
            try:
                return await self._in_turn(ask, key, text_key, self._archive.memory)
            except MessageNotFound:
                raise
            except SessionNotFound:
                raise error from None

    async def _in_turn(self, ask: Ask, key: SessionKey, text_key: str, home: Home) -> Place:
        place = Place(key, home, text_key, slot=await home.turns.enter(key), new=False)
        try:
            await self._load(ask, place)
        except BaseException:
            place.leave()
            raise
        return place

    async def _load(self, ask: Ask, place: Place) -> None:
        key, text_key, message = place.key, place.text_key, ask.continues

        def work(store: Store) -> tuple[Line, Partial | None]:
            if message is None:
                return store.load(key, text_key, ask.after, must_exist=True), None
            partial = store_answers.partial(store, key, message, text_key)
            return partial.before, partial

        place.line, place.partial = await place.home.keeper.read(work, key)
        if place.slot is not None:
            place.slot.check()

    async def _moved(self, place: Place, home: Home) -> Place:
        """The same line in the other store, in a session of its own."""
        place.leave()
        moved = await self._new(place.key.owner, home, place.text_key)
        moved.line, moved.partial = place.line, place.partial
        moved.carried = lines.carried(place.line, place.text_key)
        return moved

    # --- what is run ------------------------------------------------------------------

    async def _further(self, ask: Ask, place: Place, partial: Partial) -> Plan:
        """From the very tokens that the answer has; where those are another model's, from its
        text."""
        if ask.request.messages:
            raise InvalidField("an answer is gone on with as it is: leave input out", param="input")
        text = await self._service.model_text()
        before, said = partial.prompt_ids, partial.token_ids
        if before is None:
            request = _extended(ask, place, ())
            before = await asyncio.to_thread(text.token_ids, request)
            said = await asyncio.to_thread(text.tokenizer.encode_further, partial.text)
        request = dataclasses.replace(
            ask.request,
            messages=None,
            token_ids=before + said,
            history=History(before, len(place.line.messages)),
            continues=True,
            owner=place.key.owner,
            session_id=place.key.number,
        )
        shown = text.said(said, skip_special=request.skip_special_tokens)
        return Plan(request, Transcript(shown, said), (), shown, said)


def _extended(ask: Ask, place: Place, new: Sequence[Message]) -> GenerateRequest:
    request = lines.extended(ask.request, place.key, place.line, new)
    return lines.instructed(request, ask.instructions) if ask.instructions else request


def _text_key(text: ModelText, instructions: str | None) -> str:
    """Tokens that instructions led are of use under the same ones only."""
    if not instructions:
        return text.text_key
    digest = hashlib.sha256(instructions.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{text.text_key}+{digest}"
