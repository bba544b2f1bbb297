"""Where conversations and their answers are kept: on disk, or in memory for a while."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from lmserve.errors import AnswerNotFound, EventsGone, SetupError, StoreError
from lmserve.service.answers.records import Narrator, Record
from lmserve.service.answers.steering import pending_notices
from lmserve.service.items import as_chat, as_parts, to_message
from lmserve.service.sessions.sessions import Sessions
from lmserve.service.sessions.turns import Turns
from lmserve.service.store import answers as store_answers
from lmserve.service.store import recovery as store_recovery
from lmserve.service.store.file import open_memory
from lmserve.service.store.keeper import Keeper
from lmserve.service.store.records import Steer
from lmserve.service.store.store import Store
from lmserve.service.streams.stream import Stream
from lmserve.types import TextDelta

# of what is kept in memory
MEMORY_TTL_S = 3600.0
MEMORY_SESSIONS = 1000
MEMORY_TOKENS = 4 * 2**20

ID_PREFIX = "resp_"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Home:
    """One of the two."""

    keeper: Keeper
    turns: Turns
    durable: bool


class Archive:
    """Lives on the service's loop. A response of another owner is as none."""

    def __init__(self, sessions: Sessions, make_narrator: Callable[[], Narrator]):
        settings = sessions.settings
        self.disk = Home(sessions.keeper, sessions.turns, durable=True)
        turns = Turns(refuse=settings.session_busy == "refuse")
        settings = dataclasses.replace(
            settings,
            session_ttl_s=MEMORY_TTL_S,
            max_sessions=MEMORY_SESSIONS,
            max_session_tokens=MEMORY_TOKENS,
        )
        keeper = Keeper(settings, sessions.keeper.clock, turns.busy, lambda: Store(open_memory()))
        self.memory = Home(keeper, turns, durable=False)
        self._make_narrator = make_narrator
        #: Ids of the answers that are being made.
        self.running: Callable[[], Collection[str]] = tuple

    async def open(self) -> None:
        """After `Sessions.open`: what a dead server left is made whole."""
        await self.memory.keeper.open()
        try:
            num_left = await self._recover(self.disk)
        except StoreError as error:
            raise SetupError(f"{error.message}: give another folder with --data-dir") from None
        if num_left:
            log.info("%d answers were cut by the end of the last server", num_left)

    async def close(self) -> None:
        """Idempotent."""
        await self.memory.keeper.close()

    async def find(self, owner: str, id: str) -> tuple[Home, Record]:
        """Raises AnswerNotFound."""
        if id.startswith(ID_PREFIX) and id.isascii():
            for home in (self.disk, self.memory):
                record = await self._find(home, owner, id)
                if record is not None:
                    return home, record
        raise AnswerNotFound(f"there is no response {id[:70]!r}")

    async def _find(self, home: Home, owner: str, id: str) -> Record | None:
        record = await home.keeper.read(lambda store: store_answers.find(store, owner, id))
        if record is None or record.ended is not None or id in self.running():
            return record
        await home.keeper.write_late()  # its end could not be written before
        await self._recover(home)
        record = await home.keeper.read(lambda store: store_answers.find(store, owner, id))
        if record is not None and record.ended is None and id not in self.running():
            raise StoreError(f"{id} was cut, and its end cannot be written")
        return record

    async def _recover(self, home: Home) -> int:
        now, running = home.keeper.clock(), frozenset(self.running())
        return await home.keeper.write(lambda store: store_recovery.recover(store, now, running))

    async def find_by_key(self, owner: str, key: str) -> tuple[Home, Record, bytes] | None:
        """By the client's idempotency key; with its request's digest."""
        for home in (self.disk, self.memory):
            found = await home.keeper.read(
                lambda store: store_answers.find_by_key(store, owner, key)
            )
            record = None if found is None else await self._find(home, owner, found[0])
            if found is not None and record is not None:
                return home, record, found[1]
        return None

    async def stream(self, home: Home, record: Record) -> Stream:
        """All that an ended answer told. Raises EventsGone."""
        events, steers = await home.keeper.run(
            lambda store: (
                store_answers.events(store, record.id),
                store_answers.steers(store, record.id),
            )
        )
        if events is None or (not events and (record.text or not _was_cut(record))):
            raise EventsGone(
                f"the events of {record.id} are no longer kept: read the answer whole",
                param="starting_after",
            )
        stream = Stream(record.id, record.owner, max_bytes=2**62)
        for event in events:
            stream.append(event)
        if _was_cut(record):
            self._close(stream, record, steers)
        stream.end()
        return stream

    def told_anew(self, record: Record) -> Stream:
        """The events of one whose own are no longer kept, for those who have none of them."""
        stream = Stream(record.id, record.owner, max_bytes=2**62)
        self._close(stream, record)
        stream.end()
        return stream

    def _close(self, stream: Stream, record: Record, steers: Sequence[Steer] = ()) -> None:
        """The events that a dead server did not come to. `steers`: they were not said yet."""
        narrator = self._make_narrator()
        if not stream.next:
            opening = dataclasses.replace(record, status="in_progress", reason=None, ended=None)
            opening = dataclasses.replace(opening, text="", items=None, usage=None, error=None)
            for event in narrator.opening(opening, 0):
                stream.append(event)
            parts = None if record.items is None else as_parts(record.items)
            if record.text:
                for event in narrator.delta(TextDelta(record.text, [], parts), stream.next):
                    stream.append(event)
        for event in narrator.closing(record, stream.next):
            stream.append(event)
        answer = as_chat(to_message(record.text, record.items))
        for notice in pending_notices(record.id, answer, steers):
            stream.append(narrator.notice(notice, stream.next))


def _was_cut(record: Record) -> bool:
    return record.reason == "server_restart"
