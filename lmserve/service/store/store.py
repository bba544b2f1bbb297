"""Conversations on disk, as trees of messages. Plain calls, one thread, no asyncio."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import msgspec
from msgspec import UNSET, UnsetType

from lmserve.errors import AnswerConflict, MessageNotFound, SessionNotFound, StoreError
from lmserve.messages import pack_ids
from lmserve.service.store.file import StoreFile, open_file
from lmserve.service.store.rows import (
    LAST,
    Entry,
    Line,
    SessionKey,
    line_sql,
    num_stored,
    read_line,
    to_json,
)

__all__ = ["Entry", "Line", "SessionKey", "Store"]

INT64_MAX = 2**63 - 1  # SQLite's integers end here

# What a full, read-only or damaged file does; rows that are not what was written do the rest.
_DAMAGE = (sqlite3.Error, msgspec.DecodeError, zlib.error, ValueError, TypeError, LookupError)


class Store:
    """Every method is one transaction. Raises StoreError; then nothing changed."""

    def __init__(self, place: str | None | StoreFile):
        """In this folder, or a file that is open. Raises SetupError, one line with the remedy."""
        self._file = place if isinstance(place, StoreFile) else open_file(place)
        self._connection = self._file.connection

    def close(self) -> None:
        self._file.close()

    def load(
        self,
        key: SessionKey,
        text_key: str,
        at: int | None | UnsetType = UNSET,
        *,
        must_exist: bool = False,
    ) -> Line:
        """The line to this message of the session (None: before the first), or to its head.
        Raises MessageNotFound, AnswerConflict (that message is still being made), and
        SessionNotFound where it must exist."""
        with self.transaction():
            if must_exist:
                self.living(key)
            row = self._row(key)
            end = at if at is not UNSET else row[1] if row else None
            if at is not UNSET:
                self.check_ended(key, row[0] if row else None, at)
            return self.line(end, text_key)

    def add(
        self,
        key: SessionKey,
        entries: Sequence[Entry],
        now: float,
        *,
        after: int | None | UnsetType = UNSET,
    ) -> list[int]:
        """After this message (None: as a new beginning), or the session's head; the last one is
        the head then. A session that does not exist begins. Returns the new messages' ids."""
        texts = [to_json(entry.message) for entry in entries]
        with self.transaction():
            row = self._row(key)
            session, head = row or (self.begin(key, now), None)
            ids = self.extend(session, head if after is UNSET else after, entries, now, texts)
            self.move_head(session, ids[-1] if ids else head, now)
            return ids

    def delete(self, key: SessionKey) -> None:
        """Leaves no trace of it."""
        with self.transaction():
            row = self._row(key)
            if row is not None:
                self.clear(row[0])
                self._connection.execute("DELETE FROM sessions WHERE key = ?", row[:1])

    # --- within a transaction -------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            self._connection.execute("BEGIN")  # nobody else writes
            yield self._connection
            self._connection.execute("COMMIT")
        except _DAMAGE as error:
            raise StoreError(f"the conversation could not be kept or read: {error}") from error
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    def line(self, end: int | None, text_key: str) -> Line:
        """From the root to this message."""
        if end is None:
            return Line()
        return read_line(self._connection.execute(line_sql(), (end,)), text_key, end)

    def living(self, key: SessionKey) -> tuple[int, int | None]:
        """Its key and head. Raises SessionNotFound."""
        row = self._connection.execute(
            "SELECT key, head, lost FROM sessions WHERE owner = ? AND id = ?", (key.owner, key.id)
        ).fetchone()
        if row is None:
            raise SessionNotFound(f"there is no session {key.id}", param="session_id")
        if row[2] is not None:
            raise SessionNotFound(f"session {key.id} was forgotten: {row[2]}", param="session_id")
        return row[0], row[1]

    def check_message(self, key: SessionKey, session: int | None, message: int | None) -> None:
        """Refuses what is no message of this session. Raises MessageNotFound."""
        if message is None:
            return
        found = (
            abs(message) <= INT64_MAX
            and self._connection.execute(
                "SELECT 1 FROM messages WHERE id = ? AND session = ?", (message, session)
            ).fetchone()
        )
        if not found:
            raise MessageNotFound(f"session {key.id} has no message {message}")

    def check_ended(self, key: SessionKey, session: int | None, message: int | None) -> None:
        """Refuses what nothing may follow yet, too. Raises AnswerConflict."""
        self.check_message(key, session, message)
        row = self._connection.execute(
            "SELECT state FROM messages WHERE id = ?", (message,)
        ).fetchone()
        if row is not None and row[0] == "in_progress":
            raise AnswerConflict(f"message {message} is still being made: wait for its end")

    def extend(
        self,
        session: int,
        end: int | None,
        entries: Sequence[Entry],
        now: float,
        texts: Sequence[str],
    ) -> list[int]:
        """After this message; `texts` are the entries' messages. Returns the new ones' ids."""
        line_tokens = self.line_tokens(end)
        num_tokens = 0
        ids = []
        for entry, text in zip(entries, texts, strict=True):
            packed = None if entry.token_ids is None else pack_ids(entry.token_ids)
            line_tokens = 0 if entry.restarts else line_tokens
            line_tokens += len(entry.token_ids or ())
            end = self.insert(
                session, end, text, now, packed, line_tokens, entry.restarts, entry.text_key
            )
            num_tokens += num_stored(text, packed)
            ids.append(end)
        self.count(session, len(ids), num_tokens)
        return ids

    def count(self, session: int, num_messages: int, num_tokens: int) -> None:
        """So many more, or fewer."""
        self._connection.execute(
            "UPDATE sessions SET num_messages = num_messages + ?, num_tokens = num_tokens + ?"
            " WHERE key = ?",
            (num_messages, num_tokens, session),
        )

    def move_head(self, session: int, head: int | None, now: float) -> None:
        """And it was used."""
        self._connection.execute(
            f"UPDATE sessions SET head = ?, used = {LAST}, lost = NULL WHERE key = ?",
            (head, now, session),
        )

    def begin(self, key: SessionKey, now: float) -> int:
        session = self._connection.execute(
            "INSERT INTO sessions (owner, id, num_tokens, created, used)"
            f" VALUES (?, ?, 0, ?, {LAST})",
            (key.owner, key.id, now, now),
        ).lastrowid
        assert session is not None
        return session

    def insert(
        self,
        session: int,
        parent: int | None,
        text: str,
        created: float,
        packed: bytes | None = None,
        line_tokens: int = 0,
        restarts: bool = False,
        text_key: str | None = None,
        state: str | None = None,
        num_before: int = 0,
    ) -> int:
        """One message. Returns its id."""
        message = self._connection.execute(
            "INSERT INTO messages (session, parent, message, created, token_ids, line_tokens,"
            " restarts, text_key, state, num_before) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (session, parent, text, created, packed, line_tokens, restarts, text_key, state,
             num_before),
        ).lastrowid  # fmt: skip
        assert message is not None
        return message

    def _row(self, key: SessionKey) -> tuple[int, int | None] | None:
        """Its key and head."""
        row: tuple[int, int | None] | None = self._connection.execute(
            "SELECT key, head FROM sessions WHERE owner = ? AND id = ?", (key.owner, key.id)
        ).fetchone()
        return row

    def line_tokens(self, end: int | None) -> int:
        row = self._connection.execute(
            "SELECT line_tokens FROM messages WHERE id = ?", (end,)
        ).fetchone()
        return 0 if row is None else int(row[0])

    def clear(self, session: int) -> None:
        """Of all that was said in it."""
        self._connection.execute(
            "DELETE FROM chunks WHERE response IN (SELECT id FROM responses WHERE session = ?)",
            (session,),
        )
        self._connection.execute("DELETE FROM responses WHERE session = ?", (session,))
        self._connection.execute("DELETE FROM messages WHERE session = ?", (session,))
