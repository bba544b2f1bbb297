"""What is being typed is run ahead, so that the first token comes sooner once it is sent.

    set ─► what will stay as it is, as the turn will render it ─► prefill, at the lowest priority
     │                                                                │
     └── typed meanwhile: the newest text follows ◄── done, or put off while others have work

Being wrong costs time, never an answer: the turn takes from the cache what it really begins with.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from msgspec import UNSET, UnsetType

from lmserve.errors import InvalidField, LmserveError
from lmserve.service.generate import Service
from lmserve.service.prompt import ModelText
from lmserve.service.sessions import line as lines
from lmserve.service.sessions.sessions import Sessions
from lmserve.service.store.rows import Line, SessionKey
from lmserve.service.warm.warmth import Warmth
from lmserve.settings import WarmSettings
from lmserve.types import GenerateRequest

MAX_CHARS = 200_000  # of one draft
MAX_DRAFTS = 1000  # the one left alone longest is forgotten
MAX_AT_ONCE = 2  # others wait: together they would only be slower
FORGET_S = 300.0  # after the last change
LOOK_S = 0.1  # how soon a draft makes way for others, and comes back
_MARK = "\ue000"  # nobody types it, no template trims it
_OPEN_CHARS = 16  # a last word so long is not waited for: there are scripts without blanks

State = Literal["waiting", "running", "ready", "off"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Change:
    """`text` takes the place of all; else `truncate` comes before `append`."""

    text: str | None = None
    truncate: int | None = None  # characters that are kept
    append: str | None = None

    def apply(self, text: str) -> str:
        """Raises InvalidField."""
        alone = self.truncate is None and self.append is None
        if self.truncate is not None and self.truncate < 0:
            raise InvalidField(
                f"truncate is {self.truncate}: it says how many characters stay, at least 0",
                param="truncate",
            )
        if alone == (self.text is None):
            raise InvalidField(
                "give text, which is all that was typed; or truncate, how many characters of it "
                "stay, and append, what follows them, or one of the two",
                param="text",
            )
        changed = text[: self.truncate] + (self.append or "") if self.text is None else self.text
        if len(changed) > MAX_CHARS:
            raise InvalidField(
                f"the draft has {len(changed)} characters and the limit is {MAX_CHARS}: send it as "
                "a turn",
                param="text" if self.append is None else "append",
            )
        return changed


class Draft:
    """What is typed into one session, until its turn."""

    def __init__(self, key: SessionKey, after: int | None | UnsetType, state: State = "waiting"):
        self.key = key
        self.after = after
        self.text = ""
        self.state: State = state  # off: nothing is run ahead
        self.num_tokens = 0  # of the prompt, run ahead or about to be
        self.cached_tokens = 0  # of these, in the cache before
        self._changed = False  # since the tokens were made
        self._task: asyncio.Task[None] | None = None
        self._forget: asyncio.TimerHandle | None = None

    async def ready(self) -> bool:
        """Waits until nothing is left to run; False: nothing will be. The same draft serves all
        changes until the turn: wait in one place."""
        while self._task is not None and not self._task.done():
            await asyncio.wait({self._task})
        return self.state == "ready"


class Drafts:
    """Lives on the service's loop."""

    def __init__(
        self, service: Service, sessions: Sessions, warmth: Warmth, settings: WarmSettings
    ):
        self._service = service
        self._sessions = sessions
        self._warmth = warmth
        self._enabled = settings.drafts
        self._drafts: dict[SessionKey, Draft] = {}  # that left alone longest first
        self._places = asyncio.Semaphore(MAX_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        warmth.before_turn = self.drop
        warmth.after_turn = self._on_turn_ended

    async def close(self) -> None:
        """Idempotent."""
        for key in list(self._drafts):
            self.drop(key)
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def set(self, key: SessionKey, after: int | None | UnsetType, change: Change) -> Draft:
        """Changes what is typed in this session, to follow this message of it (None: the root;
        UNSET: the head). Raises SessionNotFound, MessageNotFound, InvalidField."""
        if not self._enabled:
            return Draft(key, after, "off")
        if self._there(key, after) is None:
            await self._sessions.peek(key, after)  # there must be such a place
        draft = self._there(key, after)  # perhaps another call made it meanwhile
        text = change.apply("" if draft is None else draft.text)
        if draft is None:
            self.drop(key)
            draft = Draft(key, after)
        self._keep(draft)
        if text != draft.text or draft.state == "off":
            draft.text = text
            self._go_on(draft)
        return draft

    def drop(self, key: SessionKey) -> bool:
        """The turn comes, or nothing will be sent. What was run stays in the cache. Says whether
        there was a draft."""
        draft = self._drafts.pop(key, None)
        if draft is None:
            return False
        if draft._forget is not None:
            draft._forget.cancel()
        if draft._task is not None and not draft._task.done():
            draft.state = "off"
            draft._task.cancel()
        return True

    # --- one draft --------------------------------------------------------------------

    def _there(self, key: SessionKey, after: int | None | UnsetType) -> Draft | None:
        draft = self._drafts.get(key)
        return draft if draft is not None and draft.after == after else None

    def _keep(self, draft: Draft) -> None:
        """For some minutes more."""
        self._drafts.pop(draft.key, None)
        self._drafts[draft.key] = draft
        if draft._forget is not None:
            draft._forget.cancel()
        loop = asyncio.get_running_loop()
        draft._forget = loop.call_later(FORGET_S, self.drop, draft.key)
        while len(self._drafts) > MAX_DRAFTS:
            self.drop(next(iter(self._drafts)))

    def _go_on(self, draft: Draft) -> None:
        """What was run, or is being run, is not the newest any more."""
        draft._changed = True
        if draft._task is None or draft._task.done():
            draft.state = "waiting"
            draft._task = task = asyncio.create_task(self._run(draft))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _on_turn_ended(self, key: SessionKey) -> None:
        """It was typed while the answer was made, which it follows now."""
        draft = self._drafts.get(key)
        if draft is not None and draft.after is UNSET:
            self._go_on(draft)

    def _may_run(self, draft: Draft) -> bool:
        in_answer = draft.after is UNSET and self._sessions.turns.current(draft.key) is not None
        return self._service.at_leisure and not in_answer

    async def _run(self, draft: Draft) -> None:
        try:
            while draft._changed:
                draft._changed = False
                token_ids = await self._token_ids(draft)
                draft.num_tokens = len(token_ids)
                cache_salt = self._warmth.salt_of(draft.key)
                await self._warmth.restore(draft.key, token_ids, cache_salt)
                async with self._places:
                    await self._prefill(draft, token_ids)
            draft.state = "ready"
        except LmserveError as error:
            log.debug("a draft is not run ahead: %s", error)
            draft.state = "off"

    async def _token_ids(self, draft: Draft) -> list[int]:
        text, line = await self._sessions.peek(draft.key, draft.after)
        return await self._service.texts.run_aside(settled_ids, text, line, draft.key, draft.text)

    async def _prefill(self, draft: Draft, token_ids: list[int]) -> None:
        """Puts it off while others have work, and until the session's answer has ended. Returns
        early where it was overtaken meanwhile."""
        while token_ids and not (draft._changed and draft.state == "waiting"):
            if self._may_run(draft):
                draft.state = "running"
                if await self._prefill_once(draft, token_ids):
                    return
                draft.state = "waiting"
            await asyncio.sleep(LOOK_S)

    async def _prefill_once(self, draft: Draft, token_ids: list[int]) -> bool:
        """Says False where it made way."""
        key, cache_salt = draft.key, self._warmth.salt_of(draft.key)
        running = asyncio.ensure_future(self._service.prefill(token_ids, key.owner, cache_salt))
        try:
            while not running.done():
                await asyncio.wait({running}, timeout=LOOK_S)
                if not running.done() and not self._service.at_leisure:
                    return False
            draft.cached_tokens = running.result()
            return True
        finally:
            running.cancel()


def settled_ids(text: ModelText, line: Line, key: SessionKey, draft: str) -> list[int]:
    """The tokens that the prompt of a turn with this draft, or with one that goes on from it,
    begins with, as far as that can be known. Not for the loop: it may take a moment."""
    now, sooner = (
        text.token_ids(lines.extended(_turn(typed), key, line, _turn(typed).messages or []))
        for typed in (draft, _settled(draft) + _MARK)  # where these part, nothing is sure
    )
    return now[: _num_common(now, sooner)]


def _turn(typed: str) -> GenerateRequest:
    return GenerateRequest(messages=[{"role": "user", "content": typed}])


def _settled(draft: str) -> str:
    """Less the word that is being typed: with its end its tokens may change."""
    whole = draft.rstrip()
    if whole == draft:
        words = draft.rsplit(None, 1)
        whole = words[0] if len(words) == 2 else ""
    return draft[: max(len(whole), len(draft) - _OPEN_CHARS)]


def _num_common(a: Sequence[int], b: Sequence[int]) -> int:
    for index, (one, other) in enumerate(zip(a, b, strict=False)):
        if one != other:
            return index
    return min(len(a), len(b))
