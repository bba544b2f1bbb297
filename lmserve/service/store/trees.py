"""What is done to whole trees in the store. Each call is one transaction of its thread."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from lmserve.errors import InvalidField, SessionExists, SessionNotFound
from lmserve.service.items import as_chat, items_of
from lmserve.service.sessions.tree import Made, Node, Seed, SessionInfo
from lmserve.service.store.rows import LAST, SessionKey, line_sql, num_stored, to_json
from lmserve.service.store.store import Store
from lmserve.types import Usage

_INFO = "SELECT id, title, head, num_messages, num_tokens, created, used FROM sessions"
_NODE = "id, parent, message, created, line_tokens, state"


def info(store: Store, key: SessionKey) -> SessionInfo:
    with store.transaction() as db:
        return _info(db, store.living(key)[0])


def page(store: Store, owner: str, limit: int, after: str | None) -> tuple[list[SessionInfo], bool]:
    """The owner's sessions, those used last first; and whether there are more. Raises
    SessionNotFound where the one they should come after is gone."""
    with store.transaction() as db:
        condition = ""
        values: tuple[int, ...] = ()
        if after is not None:
            session, _ = store.living(SessionKey(owner, after))
            condition = "AND (used, key) < (SELECT used, key FROM sessions WHERE key = ?)"
            values = (session,)
        rows = db.execute(
            f"{_INFO} WHERE owner = ? AND lost IS NULL {condition}"
            " ORDER BY used DESC, key DESC LIMIT ?",
            (owner, *values, limit + 1),
        ).fetchall()
        return [SessionInfo(*row) for row in rows[:limit]], len(rows) > limit


def line(store: Store, key: SessionKey, at: int | None) -> list[Node]:
    """From the root to this message, or to the head."""
    with store.transaction() as db:
        session, head = store.living(key)
        store.check_message(key, session, at)
        made = _made(db, session)
        rows = db.execute(line_sql(_NODE), (at or head,))
        return [_node(row, _siblings(db, session, row), made) for row in rows]


def nodes(store: Store, key: SessionKey, ids: Sequence[int]) -> list[Node]:
    """These messages of the session, in this order. Raises MessageNotFound."""
    with store.transaction() as db:
        session, _ = store.living(key)
        found = []
        for id in ids:
            store.check_message(key, session, id)
            row = db.execute(f"SELECT {_NODE} FROM messages WHERE id = ?", (id,)).fetchone()
            found.append(_node(row, _siblings(db, session, row)))
        return found


def tree(store: Store, key: SessionKey) -> tuple[SessionInfo, list[Node]]:
    """With all messages, parents first, which tell who their siblings are."""
    with store.transaction() as db:
        session, _ = store.living(key)
        rows = db.execute(f"SELECT {_NODE} FROM messages WHERE session = ? ORDER BY id", (session,))
        made = _made(db, session)
        return _info(db, session), [_node(row, made=made) for row in rows]


def plant(
    store: Store,
    key: SessionKey,
    title: str | None,
    seeds: Sequence[Seed],
    head: int | None,
    now: float,
    max_tokens: int,
) -> SessionInfo:
    """A new session; its head is one of the seeds, by index. Raises SessionExists."""
    texts = [to_json(seed.message, "messages") for seed in seeds]
    num_tokens = sum([num_stored(text, None) for text in texts])
    if num_tokens > max_tokens:
        raise InvalidField(
            f"messages hold about {num_tokens} tokens, and this server keeps {max_tokens} in all: "
            "send less",
            param="messages",
        )
    with store.transaction() as db:
        session = _begin(store, db, key, now)
        ids: list[int] = []
        for seed, text in zip(seeds, texts, strict=True):
            parent = None if seed.parent is None else ids[seed.parent]
            created = now if seed.created is None else seed.created
            ids.append(store.insert(session, parent, text, created))
        end = None if head is None else ids[head]
        return _finish(db, session, title, end, len(ids), num_tokens)


def fork(
    store: Store,
    key: SessionKey,
    new_key: SessionKey,
    at: int | None,
    title: str | None,
    now: float,
) -> SessionInfo:
    """A new session with a copy of the line to this message, or to the head: its tokens, too.
    Without a title it has that of the old one. Raises SessionExists."""
    with store.transaction() as db:
        old, head = store.living(key)
        store.check_ended(key, old, at)
        session = _begin(store, db, new_key, now)
        columns = "message, created, token_ids, line_tokens, restarts, text_key, state, num_before"
        end, num_messages, num_tokens = None, 0, 0
        for row in db.execute(line_sql(columns), (at or head,)).fetchall():
            end = store.insert(session, end, *row)
            num_messages += 1
            num_tokens += num_stored(row[0], row[2])
        title = _info(db, old).title if title is None else title
        return _finish(db, session, title, end, num_messages, num_tokens)


def update(
    store: Store,
    key: SessionKey,
    title: str | None | UnsetType,
    head: int | None | UnsetType,
    now: float,
) -> SessionInfo:
    """Renames it; moves its head to any message of it (None: before the first)."""
    with store.transaction() as db:
        session, _ = store.living(key)
        if title is not UNSET:
            db.execute("UPDATE sessions SET title = ? WHERE key = ?", (title, session))
        if head is not UNSET:
            store.check_ended(key, session, head)
            values = (head, now, session)
            db.execute(f"UPDATE sessions SET head = ?, used = {LAST} WHERE key = ?", values)
        return _info(db, session)


def _begin(store: Store, db: sqlite3.Connection, key: SessionKey, now: float) -> int:
    try:
        store.living(key)
    except SessionNotFound:
        values = (key.owner, key.id)  # perhaps one that was forgotten
        db.execute("DELETE FROM sessions WHERE owner = ? AND id = ?", values)
        return store.begin(key, now)
    raise SessionExists(f"there is a session {key.id} already: choose another id")


def _finish(
    db: sqlite3.Connection,
    session: int,
    title: str | None,
    head: int | None,
    num_messages: int,
    num_tokens: int,
) -> SessionInfo:
    db.execute(
        "UPDATE sessions SET title = ?, head = ?, num_messages = ?, num_tokens = ? WHERE key = ?",
        (title, head, num_messages, num_tokens, session),
    )
    return _info(db, session)


def _info(db: sqlite3.Connection, session: int) -> SessionInfo:
    return SessionInfo(*db.execute(f"{_INFO} WHERE key = ?", (session,)).fetchone())


def _siblings(db: sqlite3.Connection, session: int, row: tuple[Any, ...]) -> list[int]:
    rows = db.execute(
        "SELECT id FROM messages WHERE session = ? AND parent IS ? ORDER BY id", (session, row[1])
    )
    return [id for (id,) in rows]


def _made(db: sqlite3.Connection, session: int) -> dict[int, tuple[Any, ...]]:
    """What made the session's answers, in rows."""
    rows = db.execute(
        "SELECT message, id, status, reason, usage, error FROM responses"
        " WHERE session = ? AND owns",
        (session,),
    )
    return {row[0]: row[1:] for row in rows}


def _node(
    row: tuple[Any, ...],
    siblings: Sequence[int] = (),
    made: Mapping[int, tuple[Any, ...]] = MappingProxyType({}),
) -> Node:
    id, parent, text, created, line_tokens, state = row
    message, by = msgspec.json.decode(text), made.get(id)
    return Node(
        id,
        parent,
        as_chat(message),
        created,
        line_tokens,
        siblings,
        state,
        None if by is None else _by(*by),
        items_of(message),
    )


def _by(response: str, status: Any, reason: Any, usage: str | None, error: str | None) -> Made:
    return Made(
        response,
        status,
        reason,
        None if usage is None else Usage(*msgspec.json.decode(usage)),
        None if error is None else tuple(msgspec.json.decode(error)),
    )
