"""The file that conversations are kept in: found, locked, opened. Not for the loop."""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
from pathlib import Path

from lmserve.errors import SetupError

log = logging.getLogger(__name__)

VERSION = 4  # of the schema, in the file's user_version

# A session's messages form a tree: `parent` is the one before, `head` the one its next turn
# follows. `token_ids` are what a message added to the tokens of its line, or with `restarts` all
# of the line's up to here; NULL where it was never run by itself. `line_tokens` are those of the
# line up to here. A session's `num_tokens` are what it takes to keep it: all that its messages
# hold, and about as many as make the texts that were never run. A forgotten session leaves its row,
# with the reason in `lost`, so that its client can be told. No message ever has the id of another,
# deleted one: a client may still name it. `state` is NULL for a message that is whole; else it is
# an answer's: in_progress (its text is in the chunks), incomplete or failed. `num_before`: so many
# of its tokens come before the answer's own.
#
# A response is an answer that is kept by its id. `message` is the one that holds what it said,
# with `owns` its own; without, the last of its input. `steers` are inputs taken on and not yet
# said, `successor` the response that said them. Its chunks are what it told as it went: events,
# and until it has ended the text and tokens that they brought, and the parts of that text where it
# has other than plain ones. They go before it does, its log probabilities with them: `num_bytes`
# are what is left of both.
_SESSIONS = """
CREATE TABLE sessions (
    key INTEGER PRIMARY KEY,
    owner TEXT NOT NULL,
    id TEXT NOT NULL,
    title TEXT,
    head INTEGER REFERENCES messages (id) DEFERRABLE INITIALLY DEFERRED,
    num_messages INTEGER NOT NULL DEFAULT 0,
    num_tokens INTEGER NOT NULL,
    created REAL NOT NULL,
    used REAL NOT NULL,
    lost TEXT,
    UNIQUE (owner, id)
);
CREATE INDEX sessions_by_use ON sessions (used, num_tokens) WHERE lost IS NULL;
CREATE INDEX sessions_lost ON sessions (used) WHERE lost IS NOT NULL;
"""
_MESSAGES = """
CREATE TABLE messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    session INTEGER NOT NULL REFERENCES sessions (key) DEFERRABLE INITIALLY DEFERRED,
    parent INTEGER REFERENCES messages (id) DEFERRABLE INITIALLY DEFERRED,
    message TEXT NOT NULL,
    created REAL NOT NULL,
    token_ids BLOB,
    line_tokens INTEGER NOT NULL,
    restarts INTEGER NOT NULL,
    text_key TEXT
);
CREATE INDEX messages_by_session ON messages (session, parent);
CREATE INDEX messages_by_parent ON messages (parent);
"""
_LOOKED_UP = """
CREATE INDEX sessions_by_owner ON sessions (owner, used) WHERE lost IS NULL;
CREATE INDEX sessions_by_head ON sessions (head);  -- else a deleted message looks at every session
"""

_RESPONSES = """
ALTER TABLE messages ADD COLUMN state TEXT;
ALTER TABLE messages ADD COLUMN num_before INTEGER NOT NULL DEFAULT 0;
CREATE TABLE responses (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    session INTEGER NOT NULL REFERENCES sessions (key) DEFERRABLE INITIALLY DEFERRED,
    message INTEGER,
    owns INTEGER NOT NULL,
    inputs TEXT NOT NULL,
    previous TEXT,
    status TEXT NOT NULL,
    reason TEXT,
    created REAL NOT NULL,
    ended REAL,
    model TEXT NOT NULL,
    told TEXT NOT NULL,
    usage TEXT,
    error TEXT,
    background INTEGER NOT NULL,
    idempotency_key TEXT,
    idempotency_digest BLOB,
    steers TEXT,
    successor TEXT,
    num_bytes INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX responses_by_session ON responses (session);
CREATE UNIQUE INDEX responses_by_key ON responses (owner, idempotency_key)
    WHERE idempotency_key IS NOT NULL;
CREATE INDEX responses_unfinished ON responses (created) WHERE ended IS NULL OR steers IS NOT NULL;
CREATE INDEX responses_told ON responses (ended, num_bytes) WHERE num_bytes > 0;
CREATE TABLE chunks (
    response TEXT NOT NULL REFERENCES responses (id) DEFERRABLE INITIALLY DEFERRED,
    first INTEGER NOT NULL,
    num_events INTEGER NOT NULL,
    events BLOB NOT NULL,
    text TEXT,
    token_ids BLOB,
    PRIMARY KEY (response, first)
);
"""

_TOLD_APART = """
ALTER TABLE chunks ADD COLUMN parts TEXT;
ALTER TABLE responses ADD COLUMN logprobs BLOB;
"""

SCHEMA = f"{_SESSIONS} {_MESSAGES} {_LOOKED_UP} {_RESPONSES} {_TOLD_APART}"

# To the version after. 1: titles, counts, and ids that never come back. 2: responses. 3: parts of
# answers.
_MIGRATIONS = {
    1: f"""
DROP INDEX messages_by_session;
DROP INDEX messages_by_parent;
ALTER TABLE messages RENAME TO old_messages;
{_MESSAGES}
INSERT INTO messages SELECT id, session, parent, message, created, token_ids, line_tokens,
    restarts, text_key FROM old_messages;
DROP TABLE old_messages;
ALTER TABLE sessions ADD COLUMN title TEXT;
ALTER TABLE sessions ADD COLUMN num_messages INTEGER NOT NULL DEFAULT 0;
UPDATE sessions SET num_messages =
    (SELECT count(*) FROM messages WHERE session = sessions.key);
{_LOOKED_UP}
""",
    2: _RESPONSES,
    3: _TOLD_APART,
}


class StoreFile:
    """The one server that uses a folder holds its lock, until `close` or its death."""

    def __init__(self, connection: sqlite3.Connection, lock: int | None = None):
        self.connection = connection
        self._lock = lock

    def close(self) -> None:
        self.connection.close()
        if self._lock is not None:
            os.close(self._lock)


def data_dir() -> Path:
    """Where this user's programs keep data. Raises RuntimeError where there is no home."""
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "lmserve"


def open_file(folder: str | None) -> StoreFile:
    """In this folder or, where none is given and the user's own cannot be had, in memory.
    Raises SetupError."""
    if folder is not None:
        try:
            return _open(Path(folder).expanduser())
        except (OSError, RuntimeError) as error:
            raise SetupError(
                f"cannot keep conversations in {folder}: {_reason(error)}; give a folder of this "
                "server's own with --data-dir"
            ) from None
    try:
        return _open(data_dir())
    except (OSError, RuntimeError) as error:
        log.warning(
            "conversations will not survive a restart: the user's data directory cannot be used "
            "(%s); --data-dir gives this server a place of its own",
            _reason(error),
        )
        return open_memory()


def open_memory() -> StoreFile:
    """Gone with this process. Its one thread may be another than the caller's."""
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    return StoreFile(_prepare(connection))


def _open(folder: Path) -> StoreFile:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / "sessions.sqlite3"
    lock = os.open(folder / "sessions.sqlite3.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # nobody else's to read
        return StoreFile(_connect(path), lock)
    except BaseException:
        os.close(lock)
        raise


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        return _prepare(connection)
    except (sqlite3.Error, UnicodeDecodeError) as error:
        connection.close()
        if isinstance(error, sqlite3.OperationalError):  # the disk's fault, not the file's
            raise OSError(str(error)) from None
        raise SetupError(
            f"{path} is not a database that lmserve can read ({error}): move it away, with its "
            "-wal file, to begin anew, or give another folder with --data-dir"
        ) from None
    except SetupError as error:
        connection.close()
        raise SetupError(f"{path} {error}") from None


def _prepare(connection: sqlite3.Connection) -> sqlite3.Connection:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")  # a killed process loses nothing
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == 0:
        _change(connection, SCHEMA, VERSION)
        version = VERSION
    while version in _MIGRATIONS:
        _change(connection, _MIGRATIONS[version], version := version + 1)
    if version != VERSION:
        raise SetupError(
            f"was written by another version of lmserve (schema {version}, this one reads "
            f"{VERSION}): use that version, or give another folder with --data-dir"
        )
    connection.execute("PRAGMA foreign_keys = ON")  # migrations replace tables, so not before
    return connection


def _change(connection: sqlite3.Connection, script: str, version: int) -> None:
    """Wholly or, where it fails and the connection is closed, not at all."""
    connection.execute("PRAGMA foreign_keys = OFF")
    connection.execute("PRAGMA legacy_alter_table = ON")  # renaming leaves references as they are
    connection.executescript(f"BEGIN; {script} PRAGMA user_version = {version}; COMMIT;")


def _reason(error: Exception) -> str:
    if isinstance(error, BlockingIOError):
        return "another server uses it"
    return getattr(error, "strerror", None) or str(error)
