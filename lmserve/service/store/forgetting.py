"""Sessions that are forgotten: for their age, or to make room. Each call is one transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Container
from typing import Any

from lmserve.service.store.rows import SessionKey
from lmserve.service.store.store import INT64_MAX, Store


def take_lost(store: Store, key: SessionKey) -> str | None:
    """Why the session was forgotten, told once."""
    with store.transaction() as db:
        row = db.execute(
            "SELECT key, lost FROM sessions WHERE owner = ? AND id = ? AND lost IS NOT NULL",
            (key.owner, key.id),
        ).fetchone()
        if row is None:
            return None
        db.execute("DELETE FROM sessions WHERE key = ?", row[:1])
        return str(row[1])


def expire(
    store: Store, before: float, reason: str, busy: Container[SessionKey], now: float
) -> int:
    """Forgets the sessions last used before then."""
    with store.transaction() as db:
        rows = _by_use(db, "AND used < ?", (before,))
        sessions = [row[0] for row in rows if _key(row) not in busy]
        return _forget(store, db, sessions, reason, now)


def make_room(
    store: Store,
    max_sessions: int,
    max_tokens: int,
    reason: str,
    busy: Container[SessionKey],
    now: float,
) -> int:
    """Forgets what was unused longest until the rest fits."""
    with store.transaction() as db:
        num_sessions, num_tokens = db.execute(
            "SELECT count(*), total(num_tokens) FROM sessions WHERE lost IS NULL"
        ).fetchone()
        sessions = []
        for row in _by_use(db):
            if num_sessions <= max_sessions and num_tokens <= max_tokens:
                break
            if _key(row) not in busy:
                sessions.append(row[0])
                num_sessions -= 1
                num_tokens -= row[3]
        return _forget(store, db, sessions, reason, now)


def drop_lost(store: Store, most: int) -> None:
    """Of the reasons nobody asked for, keeps the newest."""
    with store.transaction() as db:
        db.execute(
            "DELETE FROM sessions WHERE key IN (SELECT key FROM sessions"
            " WHERE lost IS NOT NULL ORDER BY used DESC LIMIT -1 OFFSET ?)",
            (min(most, INT64_MAX),),
        )


def _by_use(
    db: sqlite3.Connection, condition: str = "", values: tuple[Any, ...] = ()
) -> sqlite3.Cursor:
    """Living sessions, the one unused longest first."""
    return db.execute(
        "SELECT key, owner, id, num_tokens FROM sessions"
        f" WHERE lost IS NULL {condition} ORDER BY used, key",
        values,
    )


def _forget(
    store: Store, db: sqlite3.Connection, sessions: list[int], reason: str, now: float
) -> int:
    for session in sessions:
        store.clear(session)
        db.execute(
            "UPDATE sessions SET title = NULL, head = NULL, num_messages = 0, num_tokens = 0,"
            " used = ?, lost = ? WHERE key = ?",
            (now, reason, session),
        )
    return len(sessions)


def _key(row: tuple[Any, ...]) -> SessionKey:
    return SessionKey(row[1], row[2])
