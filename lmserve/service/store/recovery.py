"""What a dead server left in the middle, made whole at the next start."""

from __future__ import annotations

import logging
from collections.abc import Collection

import msgspec

from lmserve.errors import StoreError
from lmserve.messages import unpack_ids
from lmserve.service.answers.records import Record
from lmserve.service.items import Items, as_chat, told_apart, unpack_parts
from lmserve.service.sessions.outputs import unmet
from lmserve.service.store import records
from lmserve.service.store.records import Db, Said, Steer, said_of
from lmserve.service.store.rows import Entry, to_json
from lmserve.service.store.store import Store

log = logging.getLogger(__name__)


def recover(store: Store, now: float, running: Collection[str] = ()) -> int:
    """Answers that were being made, and are not now, are incomplete, with what reached the disk;
    input that was taken on follows them. One transaction each; one that is damaged is left as it
    is. Returns how many were made whole. Raises StoreError where none can be found."""
    with store.transaction() as db:
        ids = db.execute(
            "SELECT id FROM responses WHERE ended IS NULL OR steers IS NOT NULL ORDER BY created"
        ).fetchall()
    num_whole = 0
    for (id,) in ids:
        if id not in running:
            try:
                num_whole += _recover(store, id, now)
            except StoreError as error:
                log.error("%s was cut by the end of a server and stays so: %s", id, error)
    return num_whole


def _recover(store: Store, id: str, now: float) -> bool:
    """False: nothing was left in the middle."""
    with store.transaction() as db:
        row = db.execute(f"{records.SELECT_RECORD} WHERE r.id = ?", (id,)).fetchone()
        if row is None:
            raise StoreError("it is of no session")
        record = records.read_record(row)
        session, owns, steers = db.execute(
            "SELECT session, owns, steers FROM responses WHERE id = ?", (id,)
        ).fetchone()
        was_cut = record.ended is None
        if was_cut:
            _end(store, db, record, session, owns, now)
        says = steers is not None and not _waits(db, record, steers)
        if says:
            _say(store, db, record, session, steers, now)
        return was_cut or says


def _end(store: Store, db: Db, record: Record, session: int, owns: bool, now: float) -> None:
    message = record.message_id
    first = next(iter(record.input_ids), message if owns else None)
    if owns and message is not None:
        said = _said(db, record.id)
        store.count(session, 0, records.close_message(db, message, said))
        record.text, record.items = said.text, said.items
    if first is not None:
        (followed,) = db.execute("SELECT parent FROM messages WHERE id = ?", (first,)).fetchone()
        _move_head(store, db, session, followed, message, now)
    record.status, record.reason, record.ended = "incomplete", "server_restart", now
    records.end_record(db, record)


def _said(db: Db, id: str) -> Said:
    texts: list[str] = []
    ids = bytearray()
    items: Items | None = None
    for text, packed, parts in db.execute(
        "SELECT text, token_ids, parts FROM chunks WHERE response = ? ORDER BY first", (id,)
    ):
        texts.append(text)
        ids += packed
        if parts is not None:
            items = Items() if items is None else items
            for part in unpack_parts(parts):
                items.add(part)
    text = "".join(texts)
    whole = None if items is None else told_apart(text, items.whole(cut=True))
    return Said(text, unpack_ids(bytes(ids)), "incomplete", whole)


def _waits(db: Db, record: Record, packed: str) -> bool:
    """Whether what was taken on is said with the outputs of calls, which are still to come."""
    row = db.execute("SELECT message FROM messages WHERE id = ?", (record.message_id,)).fetchone()
    answer = as_chat(msgspec.json.decode(row[0])) if row else {}
    steers = msgspec.json.decode(packed, type=list[Steer])
    return bool(unmet(answer, said_of(steers)))


def _say(store: Store, db: Db, record: Record, session: int, packed: str, now: float) -> None:
    messages = said_of(msgspec.json.decode(packed, type=list[Steer]))
    texts = [to_json(message) for message in messages]
    ids = store.extend(session, record.message_id, [*map(Entry, messages)], now, texts)
    _move_head(store, db, session, record.message_id, ids[-1], now)
    db.execute("UPDATE responses SET steers = NULL WHERE id = ?", (record.id,))


def _move_head(
    store: Store, db: Db, session: int, followed: int | None, to: int | None, now: float
) -> None:
    """If nothing else became the head meanwhile."""
    (head,) = db.execute("SELECT head FROM sessions WHERE key = ?", (session,)).fetchone()
    if head == followed:
        store.move_head(session, to, now)
