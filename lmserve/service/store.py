"""Conversations on disk, as trees of messages. Plain calls, one thread, no asyncio."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec

from lmserve.errors import InvalidField, StoreError
from lmserve.messages import pack_ids, unpack_ids
from lmserve.service.store_file import open_file
from lmserve.types import History

Message = dict[str, Any]

_INT64_MAX = 2**63 - 1  # SQLite's integers end here


@dataclass(frozen=True, slots=True)
class SessionKey:
    """Sessions of different owners never meet, whatever their ids."""

    owner: str
    id: str  # for /v1/chat/interactive the client's integer as text


@dataclass(frozen=True, slots=True)
class Entry:
    """A message to store, with the tokens it added to those of its line (None: not known), or
    with `restarts` all of the line's up to here."""

    message: Message
    token_ids: Sequence[int] | None = None
    restarts: bool = False
    text_key: str | None = None  # of the tokenizer and template that made them


@dataclass(frozen=True, slots=True)
class Line:
    """The straight way from a session's first message to its head. Empty: there is none."""

    messages: list[Message] = field(default_factory=list)
    history: History | None = None  # as far as tokens of the model served now are known
    num_tokens: int = 0  # of the line, be they of use or not


class Store:
    """Every method is one transaction. Raises StoreError; then nothing changed."""

    def __init__(self, folder: str | None):
        """Raises SetupError, one line with the remedy."""
        self._file = open_file(folder)
        self._connection = self._file.connection

    def close(self) -> None:
        self._file.close()

    def load(self, key: SessionKey, text_key: str) -> Line:
        with self._transaction():
            row = self._row(key)
            if row is None or row[1] is None:
                return Line()
            return _line(self._connection.execute(_LINE, (row[1],)), text_key)

    def add(self, key: SessionKey, entries: Sequence[Entry], now: float) -> None:
        """After the session's head. A session that does not exist begins."""
        texts = [_to_json(entry.message) for entry in entries]
        with self._transaction():
            row = self._row(key)
            session, head, num_tokens = row or (self._begin(key, now), None, 0)
            line_tokens = self._line_tokens(head)
            for entry, text in zip(entries, texts, strict=True):
                ids = None if entry.token_ids is None else pack_ids(entry.token_ids)
                line_tokens = 0 if entry.restarts else line_tokens
                line_tokens += len(entry.token_ids or ())
                head = self._connection.execute(
                    "INSERT INTO messages (session, parent, message, created, token_ids,"
                    " line_tokens, restarts, text_key) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (session, head, text, now, ids, line_tokens, entry.restarts, entry.text_key),
                ).lastrowid
                num_tokens += _size(entry, text)
            self._connection.execute(
                "UPDATE sessions SET head = ?, num_tokens = ?, used = ?, lost = NULL WHERE key = ?",
                (head, num_tokens, now, session),
            )

    def delete(self, key: SessionKey) -> None:
        """Leaves no trace of it."""
        with self._transaction():
            row = self._row(key)
            if row is not None:
                self._delete_messages(row[0])
                self._connection.execute("DELETE FROM sessions WHERE key = ?", row[:1])

    def take_lost(self, key: SessionKey) -> str | None:
        """Why the session was forgotten, told once."""
        with self._transaction():
            row = self._connection.execute(
                "SELECT key, lost FROM sessions WHERE owner = ? AND id = ? AND lost IS NOT NULL",
                (key.owner, key.id),
            ).fetchone()
            if row is None:
                return None
            self._connection.execute("DELETE FROM sessions WHERE key = ?", row[:1])
            return str(row[1])

    def expire(self, before: float, reason: str, busy: Collection[SessionKey], now: float) -> int:
        """Forgets the sessions last used before then."""
        with self._transaction():
            rows = self._by_use("AND used < ?", (before,))
            return self._forget([row[0] for row in rows if _key(row) not in busy], reason, now)

    def make_room(
        self,
        max_sessions: int,
        max_tokens: int,
        reason: str,
        busy: Collection[SessionKey],
        now: float,
    ) -> int:
        """Forgets what was unused longest until the rest fits."""
        with self._transaction():
            num_sessions, num_tokens = self._connection.execute(
                "SELECT count(*), total(num_tokens) FROM sessions WHERE lost IS NULL"
            ).fetchone()
            sessions = []
            for row in self._by_use():
                if num_sessions <= max_sessions and num_tokens <= max_tokens:
                    break
                if _key(row) not in busy:
                    sessions.append(row[0])
                    num_sessions -= 1
                    num_tokens -= row[3]
            return self._forget(sessions, reason, now)

    def drop_lost(self, most: int) -> None:
        """Of the reasons nobody asked for, keeps the newest."""
        with self._transaction():
            self._connection.execute(
                "DELETE FROM sessions WHERE key IN (SELECT key FROM sessions"
                " WHERE lost IS NOT NULL ORDER BY used DESC LIMIT -1 OFFSET ?)",
                (min(most, _INT64_MAX),),
            )

    # --- within a transaction -------------------------------------------------------------

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._connection.execute("BEGIN")  # nobody else writes
            yield
            self._connection.execute("COMMIT")
        except (sqlite3.Error, msgspec.DecodeError, ValueError) as error:
            raise StoreError(f"the conversation could not be kept or read: {error}") from error
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    def _row(self, key: SessionKey) -> tuple[int, int | None, int] | None:
        """Its key, head and tokens."""
        row: tuple[int, int | None, int] | None = self._connection.execute(
            "SELECT key, head, num_tokens FROM sessions WHERE owner = ? AND id = ?",
            (key.owner, key.id),
        ).fetchone()
        return row

    def _line_tokens(self, head: int | None) -> int:
        row = self._connection.execute(
            "SELECT line_tokens FROM messages WHERE id = ?", (head,)
        ).fetchone()
        return 0 if row is None else int(row[0])

    def _begin(self, key: SessionKey, now: float) -> int:
        session = self._connection.execute(
            "INSERT INTO sessions (owner, id, num_tokens, created, used) VALUES (?, ?, 0, ?, ?)",
            (key.owner, key.id, now, now),
        ).lastrowid
        assert session is not None
        return session

    def _by_use(self, condition: str = "", values: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        """Living sessions, the one unused longest first."""
        return self._connection.execute(
            "SELECT key, owner, id, num_tokens FROM sessions"
            f" WHERE lost IS NULL {condition} ORDER BY used, key",
            values,
        )

    def _forget(self, sessions: list[int], reason: str, now: float) -> int:
        for session in sessions:
            self._delete_messages(session)
            self._connection.execute(
                "UPDATE sessions SET head = NULL, num_tokens = 0, used = ?, lost = ? WHERE key = ?",
                (now, reason, session),
            )
        return len(sessions)

    def _delete_messages(self, session: int) -> None:
        self._connection.execute("DELETE FROM messages WHERE session = ?", (session,))


_LINE = """
WITH RECURSIVE line (id, parent, message, token_ids, line_tokens, restarts, text_key, depth) AS (
    SELECT id, parent, message, token_ids, line_tokens, restarts, text_key, 0
    FROM messages WHERE id = ?
    UNION ALL
    SELECT m.id, m.parent, m.message, m.token_ids, m.line_tokens, m.restarts, m.text_key,
        depth + 1
    FROM messages m JOIN line ON m.id = line.parent
)
SELECT message, token_ids, line_tokens, restarts, text_key FROM line ORDER BY depth DESC
"""


def _line(rows: Iterator[tuple[str, bytes | None, int, int, str | None]], text_key: str) -> Line:
    messages: list[Message] = []
    ids = bytearray()
    known = False
    num_bytes = num_known = 0  # of `ids` and `messages`, up to the last answer
    num_tokens = 0
    for text, packed, num_tokens, restarts, key in rows:  # noqa: B007  the last one's
        messages.append(msgspec.json.decode(text))
        if restarts:
            ids.clear()
            num_bytes = num_known = 0
        # an unknown message ends what is known, until all begins anew
        known = packed is not None and key == text_key and (known or bool(restarts))
        if known and packed is not None:
            ids += packed
            if messages[-1].get("role") == "assistant":
                num_bytes, num_known = len(ids), len(messages)
    history = History(unpack_ids(bytes(ids[:num_bytes])), num_known) if num_known else None
    return Line(messages, history, num_tokens)


def _size(entry: Entry, text: str) -> int:
    """In tokens. A text that was never run has about one in four characters."""
    return len(text) // 4 + 1 if entry.token_ids is None else len(entry.token_ids)


def _key(row: tuple[Any, ...]) -> SessionKey:
    return SessionKey(row[1], row[2])


def _to_json(message: Message) -> str:
    try:
        return msgspec.json.encode(message).decode()
    except UnicodeEncodeError:
        raise InvalidField(
            "the text holds half of a surrogate pair, which is not valid Unicode: send it as UTF-8",
            param="prompt",
        ) from None
