"""Where in which tree an answer goes, and what is run for it there."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from lmserve.errors import AnswerConflict, InvalidField, MessageNotFound, SessionNotFound
from lmserve.service.answers.archive import Archive, Home
from lmserve.service.answers.records import Ask
from lmserve.service.answers.steering import Applied
from lmserve.service.generate import Service
from lmserve.service.prompt import ModelText
from lmserve.service.sessions import line as lines
from lmserve.service.sessions.outputs import check_outputs, unmet
from lmserve.service.sessions.sessions import Sessions
from lmserve.service.sessions.turns import Slot
from lmserve.service.store import answers as store_answers
from lmserve.service.store.answers import Partial, Waiting
from lmserve.service.store.records import said_of
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
    waiting: Waiting | None = None  # what the line's last answer was steered with

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
    applied: Applied | None = None  # steers that are said with the outputs they waited for


class Places:
    def __init__(self, service: Service, sessions: Sessions, archive: Archive):
        self._service = service
        self._sessions = sessions
        self._archive = archive

    async def find(self, ask: Ask, slot: Slot | None) -> Place:
        """Waits for the session's turn where the ask is for one; `slot`: it is there already.
        Raises AnswerNotFound, AnswerConflict, SessionNotFound, MessageNotFound, SessionBusy,
        Overloaded."""
        text_key = _text_key(await self._service.model_text(), ask)
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
        waiting, applied = place.waiting, None
        if waiting is not None:
            applied = Applied(waiting.response, waiting.num_tokens, waiting.steers)
            new = _after_outputs(new, applied.messages)
        check_outputs(place.line.messages, new)
        request = _extended(ask, place, new)
        if not ask.generate:
            request = dataclasses.replace(
                request, max_tokens=1, min_tokens=None, stop=(), stop_token_ids=()
            )
        return Plan(request, Transcript(), new, applied=applied)

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

        def work(store: Store) -> tuple[Line, Partial | None, Waiting | None]:
            if message is not None:
                partial = store_answers.partial(store, key, message, text_key)
                return partial.before, partial, None
            line = store.load(key, text_key, ask.after, must_exist=True)
            return line, None, _waiting(store, key, line)

        place.line, place.partial, place.waiting = await place.home.keeper.read(work, key)
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
            before = await self._service.texts.run_aside(text.token_ids, request)
            said = await self._service.texts.run_aside(text.tokenizer.encode_further, partial.text)
        request = dataclasses.replace(
            ask.request,
            messages=None,
            token_ids=before + said,
            history=History(before, len(place.line.messages)),
            continues=True,
            owner=place.key.owner,
            session_id=place.key.number,
        )
        shown = text.said(request, said)
        return Plan(request, Transcript(shown, said), (), shown, said)


def _waiting(store: Store, key: SessionKey, line: Line) -> Waiting | None:
    """Steers that wait for outputs of the line's last answer, be these there or still to come."""
    messages = line.messages
    num_outputs = 0
    while num_outputs < len(messages) and messages[-1 - num_outputs].get("role") == "tool":
        num_outputs += 1
    if num_outputs == len(messages) or not unmet(answer := messages[-1 - num_outputs], ()):
        return None
    found = store_answers.waiting(store, key, line.end, num_outputs)
    if found is None or not unmet(answer, said_of(found.steers)):
        return None  # there is none, or its successor is being made
    return found


def _after_outputs(new: Sequence[Message], steers: Sequence[Message]) -> list[Message]:
    num_outputs = 0
    while num_outputs < len(new) and new[num_outputs].get("role") == "tool":
        num_outputs += 1
    return [*new[:num_outputs], *steers, *new[num_outputs:]]


def _extended(ask: Ask, place: Place, new: Sequence[Message]) -> GenerateRequest:
    request = lines.extended(ask.request, place.key, place.line, new)
    return lines.instructed(request, ask.instructions) if ask.instructions else request


def _text_key(text: ModelText, ask: Ask) -> str:
    """Tokens that instructions or tools led are of use under the same ones only."""
    key = text.text_key
    if ask.instructions:
        digest = hashlib.sha256(ask.instructions.encode("utf-8", "surrogatepass"))
        key += f"+{digest.hexdigest()}"
    if tools := text.speech.tools(ask.request):
        about = json.dumps([dataclasses.asdict(tool) for tool in tools])
        key += f"+{hashlib.sha256(about.encode()).hexdigest()}"
    return key
