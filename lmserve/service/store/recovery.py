"""What a dead server left in the middle, made whole at the next start."""

from __future__ import annotations

import logging
from collections.abc import Collection

import msgspec

from lmserve.errors import StoreError
from lmserve.messages import unpack_ids
from lmserve.service.answers.records import Record
from lmserve.service.store import records
from lmserve.service.store.records import Db, Said, Steer
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
                _recover(store, id, now)
                num_whole += 1
            except StoreError as error:
                log.error("%s was cut by the end of a server and stays so: %s", id, error)
    return num_whole


def _recover(store: Store, id: str, now: float) -> None:
    with store.transaction() as db:
        row = db.execute(f"{records.SELECT_RECORD} WHERE r.id = ?", (id,)).fetchone()
        if row is None:
            raise StoreError("it is of no session")
        record = records.read_record(row)
        session, owns, steers = db.execute(
            "SELECT session, owns, steers FROM responses WHERE id = ?", (id,)
        ).fetchone()
        if record.ended is None:
            _end(store, db, record, session, owns, now)
        if steers is not None:
            _say(store, db, record, session, steers, now)


def _end(store: Store, db: Db, record: Record, session: int, owns: bool, now: float) -> None:
    message = record.message_id
    first = next(iter(record.input_ids), message if owns else None)
    if owns and message is not None:
        store.count(session, 0, records.close_message(db, message, _said(db, record.id)))
    if first is not None:
        (followed,) = db.execute("SELECT parent FROM messages WHERE id = ?", (first,)).fetchone()
        _move_head(store, db, session, followed, message, now)
    record.status, record.reason, record.ended = "incomplete", "server_restart", now
    records.end_record(db, record)


def _said(db: Db, id: str) -> Said:
    texts: list[str] = []
    ids = bytearray()
    for text, packed in db.execute(
        "SELECT text, token_ids FROM chunks WHERE response = ? ORDER BY first", (id,)
    ):
        texts.append(text)
        ids += packed
    return Said("".join(texts), unpack_ids(bytes(ids)), "incomplete")


def _say(store: Store, db: Db, record: Record, session: int, packed: str, now: float) -> None:
    steers = msgspec.json.decode(packed, type=list[Steer])
    messages = [dict(message) for steer in steers for message in steer.messages]
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
