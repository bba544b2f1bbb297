"""Answers in the store: begun, gone on with, ended, found again. Each call is one transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from lmserve.errors import AnswerConflict
from lmserve.messages import pack_ids, unpack_ids
from lmserve.service.answers.records import Record
from lmserve.service.store import records
from lmserve.service.store.records import Beginning, Chunk, Db, Said, Steer
from lmserve.service.store.rows import LAST, Entry, Line, SessionKey, num_stored, to_json
from lmserve.service.store.store import Store
from lmserve.service.streams.stream import StreamEvent


@dataclass(frozen=True, slots=True)
class Partial:
    """An answer that can be gone on with."""

    before: Line  # it follows these
    text: str
    prompt_ids: list[int] | None  # what it was made from. None: not in this model's tokens
    token_ids: list[int]  # its own


@dataclass(frozen=True, slots=True)
class Waiting:
    """Input that an answer was steered with, and that waits for its calls' outputs."""

    response: str
    steers: Sequence[Steer]
    num_tokens: int  # of the answer


def begin(store: Store, beginning: Beginning, now: float) -> tuple[list[int], int | None]:
    """Returns the ids of its input messages, and of its own. Raises SessionNotFound,
    MessageNotFound, AnswerConflict."""
    record, answer = beginning.record, beginning.answer
    key = SessionKey(record.owner, record.session)
    carried = [to_json(entry.message) for entry in beginning.carried]
    texts = [to_json(entry.message, "input") for entry in beginning.inputs]
    with store.transaction() as db:
        session = store.begin(key, now) if beginning.new else store.living(key)[0]
        store.check_ended(key, session, beginning.after)
        before = store.extend(session, beginning.after, beginning.carried, now, carried)
        end = before[-1] if before else beginning.after
        if beginning.new:
            store.move_head(session, end, now)
        inputs = store.extend(session, end, beginning.inputs, now, texts)
        message = end = inputs[-1] if inputs else end
        if answer is not None:
            message = _open_message(store, session, end, answer, now)
        db.execute(f"UPDATE sessions SET used = {LAST} WHERE key = ?", (now, session))
        records.insert_record(db, session, beginning, inputs, message)
        if beginning.steered is not None:
            _take_steers(db, beginning.steered, record.id)
        return inputs, message


def _take_steers(db: Db, id: str, successor: str) -> None:
    taken = db.execute(
        "UPDATE responses SET steers = NULL, successor = ? WHERE id = ? AND steers IS NOT NULL",
        (successor, id),
    )
    if taken.rowcount == 0:
        raise AnswerConflict(f"{id} is being followed by another: ask again")


def _open_message(store: Store, session: int, end: int | None, answer: Entry, now: float) -> int:
    """Empty, until the answer has ended."""
    text, packed = to_json(answer.message), pack_ids(answer.token_ids or ())
    num_before = len(packed) // 4
    line_tokens = num_before + (0 if answer.restarts else store.line_tokens(end))
    store.count(session, 1, num_stored(text, packed))
    return store.insert(
        session, end, text, now, packed, line_tokens, answer.restarts, answer.text_key,
        "in_progress", num_before,
    )  # fmt: skip


def add_chunk(store: Store, id: str, chunk: Chunk) -> None:
    """Of one that was deleted, nothing."""
    with store.transaction() as db:
        if _session_of(db, id) is not None:
            records.insert_chunk(db, id, chunk)


def end(store: Store, record: Record, said: Said | None, chunk: Chunk, now: float) -> bool:
    """The session's head is its message then, unless it failed. False: it was deleted, or has
    ended."""
    with store.transaction() as db:
        row = db.execute(
            "SELECT session FROM responses WHERE id = ? AND ended IS NULL", (record.id,)
        ).fetchone()
        if row is None:
            return False
        (session,) = row
        if said is not None and record.message_id is not None:
            store.count(session, 0, records.close_message(db, record.message_id, said))
        if record.status != "failed":
            store.move_head(session, record.message_id, now)
        records.insert_chunk(db, record.id, chunk)
        records.end_record(db, record)
        return True


def set_told(store: Store, id: str, told: Mapping[str, Any]) -> None:
    with store.transaction() as db:
        packed = msgspec.json.encode(told).decode()
        db.execute("UPDATE responses SET told = ? WHERE id = ?", (packed, id))


def set_steers(store: Store, id: str, steers: Sequence[Steer]) -> None:
    with store.transaction() as db:
        packed = msgspec.json.encode(steers).decode() if steers else None
        db.execute("UPDATE responses SET steers = ? WHERE id = ?", (packed, id))


# --- found again ----------------------------------------------------------------------------


def find(store: Store, owner: str, id: str) -> Record | None:
    with store.transaction() as db:
        row = db.execute(
            f"{records.SELECT_RECORD} WHERE r.owner = ? AND r.id = ?", (owner, id)
        ).fetchone()
        return None if row is None else records.read_record(row)


def find_by_key(store: Store, owner: str, key: str) -> tuple[str, bytes] | None:
    """Its id, and its request's digest."""
    with store.transaction() as db:
        row: tuple[str, bytes] | None = db.execute(
            "SELECT id, idempotency_digest FROM responses WHERE owner = ? AND idempotency_key = ?",
            (owner, key),
        ).fetchone()
        return row


def events(store: Store, id: str) -> list[StreamEvent] | None:
    """All that it told. None: they are no longer kept."""
    with store.transaction() as db:
        rows = db.execute(
            "SELECT first, events FROM chunks WHERE response = ? ORDER BY first", (id,)
        ).fetchall()
        found: list[StreamEvent] = []
        for first, packed in rows:
            if first != len(found):
                return None
            found += records.read_events(packed)
        return found


def partial(store: Store, key: SessionKey, message: int, text_key: str) -> Partial:
    """Raises SessionNotFound, MessageNotFound, AnswerConflict (it is no answer to go on with)."""
    with store.transaction() as db:
        session, _ = store.living(key)
        store.check_ended(key, session, message)
        parent, state, packed, num_before, stored = db.execute(
            "SELECT parent, state, token_ids, num_before, message FROM messages WHERE id = ?",
            (message,),
        ).fetchone()
        if state is None:
            raise AnswerConflict(f"message {message} is whole: nothing of it is left to say")
        line = store.line(message, text_key)
        before = store.line(parent, text_key)
    own = unpack_ids(packed)[num_before:]
    known = line.token_ids
    prompt = None if known is None else known[: len(known) - len(own)]
    return Partial(before, msgspec.json.decode(stored)["content"], prompt, own)


def steers(store: Store, id: str) -> list[Steer]:
    """What it was steered with, which was not said yet."""
    with store.transaction() as db:
        row = db.execute("SELECT steers FROM responses WHERE id = ?", (id,)).fetchone()
        if row is None or row[0] is None:
            return []
        return msgspec.json.decode(row[0], type=list[Steer])


def waiting(
    store: Store, key: SessionKey, message: int | None, num_after: int = 0
) -> Waiting | None:
    """The same, of the answer that has so many messages after it, this the last."""
    with store.transaction() as db:
        for _ in range(num_after):
            (message,) = db.execute(
                "SELECT parent FROM messages WHERE id = ?", (message,)
            ).fetchone()
        row = db.execute(
            "SELECT r.id, r.steers, length(m.token_ids) / 4 - m.num_before FROM responses r"
            " JOIN sessions s ON s.key = r.session JOIN messages m ON m.id = r.message"
            " WHERE s.owner = ? AND s.id = ? AND r.message = ? AND r.owns"
            " AND r.ended IS NOT NULL AND r.steers IS NOT NULL",
            (key.owner, key.id, message),
        ).fetchone()
        if row is None:
            return None
        return Waiting(row[0], msgspec.json.decode(row[1], type=list[Steer]), row[2])


# --- and forgotten --------------------------------------------------------------------------


def delete(store: Store, owner: str, id: str, now: float) -> bool:
    """And its messages that nothing follows. False: there is none."""
    with store.transaction() as db:
        row = db.execute(
            "SELECT session, message, owns, inputs FROM responses WHERE owner = ? AND id = ?",
            (owner, id),
        ).fetchone()
        if row is None:
            return False
        session, message, owns, inputs = row
        db.execute("DELETE FROM chunks WHERE response = ?", (id,))
        db.execute("DELETE FROM responses WHERE id = ?", (id,))
        own = [*msgspec.json.decode(inputs), *((message,) if owns else ())]
        for each in reversed(own):
            if not _delete_leaf(store, db, session, each, now):
                break
        return True


def _delete_leaf(store: Store, db: Db, session: int, message: int, now: float) -> bool:
    followed = db.execute(
        "SELECT EXISTS (SELECT 1 FROM messages WHERE parent = ?)"
        " OR EXISTS (SELECT 1 FROM responses WHERE session = ? AND message = ?)",
        (message, session, message),
    ).fetchone()
    row = db.execute(
        "SELECT parent, message, token_ids FROM messages WHERE id = ?", (message,)
    ).fetchone()
    if followed[0] or row is None:
        return False
    parent, text, packed = row
    (head,) = db.execute("SELECT head FROM sessions WHERE key = ?", (session,)).fetchone()
    if head == message:
        store.move_head(session, parent, now)
    db.execute("DELETE FROM messages WHERE id = ?", (message,))
    store.count(session, -1, -num_stored(text, packed))
    return True


def expire_events(store: Store, before: float, max_bytes: int) -> None:
    """Of answers that ended before then; and of those that ended first, until the rest fits."""
    with store.transaction() as db:
        (total,) = db.execute(
            "SELECT total(num_bytes) FROM responses WHERE num_bytes > 0"
        ).fetchone()
        gone = []
        for id, ended, num_bytes in db.execute(
            "SELECT id, ended, num_bytes FROM responses WHERE num_bytes > 0 AND ended IS NOT NULL"
            " ORDER BY ended"
        ):
            if ended >= before and total <= max_bytes:
                break
            gone.append((id,))
            total -= num_bytes
        db.executemany("DELETE FROM chunks WHERE response = ?", gone)
        db.executemany("UPDATE responses SET num_bytes = 0, logprobs = NULL WHERE id = ?", gone)


def _session_of(db: Db, id: str) -> int | None:
    row = db.execute("SELECT session FROM responses WHERE id = ?", (id,)).fetchone()
    return None if row is None else int(row[0])
