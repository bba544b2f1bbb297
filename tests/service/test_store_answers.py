"""What the store keeps of answers: rows begun and ended, counted, forgotten, migrated."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lmserve.errors import AnswerConflict, MessageNotFound, SessionNotFound, StoreError
from lmserve.service.answers.records import Record
from lmserve.service.store import answers as store_answers
from lmserve.service.store import forgetting
from lmserve.service.store import recovery as store_recovery
from lmserve.service.store import trees as store_tree
from lmserve.service.store.file import open_memory
from lmserve.service.store.records import Beginning, Chunk, Said, Steer
from lmserve.service.store.store import Entry, SessionKey, Store
from lmserve.service.streams.stream import StreamEvent
from lmserve.types import History, Usage

ONE = SessionKey("", "1")
NOBODY: frozenset[SessionKey] = frozenset()


@pytest.fixture
def store() -> Iterator[Store]:
    store = Store(open_memory())
    yield store
    store.close()


def entry(text: str, ids: list[int] | None, *, restarts: bool = False) -> Entry:
    return Entry({"role": "user", "content": text}, ids, restarts, "k")


def begin(store: Store, id: str, after: int | None = None, **about: Any) -> Record:
    record = Record(id, "", "1", None, 1.0, "m", {"a": "\u00e9"})
    new = about.pop("new", after is None)
    beginning = Beginning(
        record,
        new=new,
        after=after,
        carried=about.pop("carried", ()),
        inputs=[entry("q", [1, 2], restarts=new)],
        answer=Entry({"role": "assistant", "content": ""}, [], text_key="k"),
        **about,
    )
    record.input_ids, record.message_id = store_answers.begin(store, beginning, 1.0)
    return record


def events(num: int, size: int = 1) -> list[StreamEvent]:
    return [StreamEvent(b"e", bytes([65 + index]) * size) for index in range(num)]


def finish(store: Store, record: Record, chunk: Chunk | None = None) -> Record:
    record.status, record.ended, record.text = "completed", 2.0, "xy"
    record.usage = Usage(2, 2, 0)
    said = Said("xy", [3, 4], None)
    assert store_answers.end(store, record, said, chunk or Chunk(0, events(2)), 2.0)
    return record


def counted(store: Store) -> int:
    """What the session's messages hold, in tokens, counted anew."""
    rows = store._connection.execute("SELECT message, token_ids FROM messages").fetchall()
    return sum(len(text) // 4 + 1 if ids is None else len(ids) // 4 for text, ids in rows)


def test_an_answer_begins_goes_on_and_ends(store: Store) -> None:
    record = begin(store, "resp_1")
    assert store_answers.find(store, "", "resp_1") == record
    assert store_tree.info(store, ONE).head is None
    with pytest.raises(AnswerConflict):
        store.load(ONE, "k", record.message_id)
    store_answers.add_chunk(store, "resp_1", Chunk(0, events(2), "x", [3]))
    finish(store, record, Chunk(2, events(1)))
    assert store_answers.find(store, "", "resp_1") == record
    assert store_answers.find(store, "you", "resp_1") is None
    assert store_answers.events(store, "resp_1") == [*events(2), *events(1)]
    assert store.load(ONE, "k").history == History([1, 2, 3, 4], 2)
    info = store_tree.info(store, ONE)
    assert (info.head, info.num_messages) == (record.message_id, 2)
    assert info.num_tokens == counted(store) == 4


def test_what_an_answer_would_follow_must_be_there(store: Store) -> None:
    with pytest.raises(SessionNotFound):
        begin(store, "resp_1", new=False)
    record = begin(store, "resp_2")
    with pytest.raises(MessageNotFound):
        begin(store, "resp_3", after=99)
    with pytest.raises(AnswerConflict):
        begin(store, "resp_3", after=record.message_id)
    assert store_answers.find(store, "", "resp_3") is None


@pytest.mark.parametrize("how", ["delete", "expire"])
def test_with_its_session_an_answer_leaves_no_trace(store: Store, how: str) -> None:
    record = begin(store, "resp_1", idempotency=("key", b"1"))
    store_answers.add_chunk(store, "resp_1", Chunk(0, events(2), "x", [3]))
    if how == "delete":
        store.delete(ONE)
    else:
        forgetting.expire(store, 9.0, "old", NOBODY, 9.0)
    for table in ("messages", "responses", "chunks"):
        assert store._connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
    store_answers.add_chunk(store, "resp_1", Chunk(2, events(2)))
    store_answers.set_steers(store, "resp_1", ())
    assert not store_answers.end(store, record, Said("", [], None), Chunk(2, events(1)), 2.0)
    assert store_answers.find_by_key(store, "", "key") is None
    assert store._connection.execute("SELECT count(*) FROM chunks").fetchone() == (0,)
    assert list(store._connection.execute("PRAGMA foreign_key_check")) == []


def test_a_deleted_answer_is_counted_off(store: Store) -> None:
    first = finish(store, begin(store, "resp_1"))
    second = finish(store, begin(store, "resp_2", after=first.message_id))
    assert store_answers.delete(store, "", "resp_1", 3.0)
    assert not store_answers.delete(store, "", "resp_1", 3.0)
    assert not store_answers.delete(store, "you", "resp_2", 3.0)
    assert store_tree.info(store, ONE).num_messages == 4
    assert store_answers.delete(store, "", "resp_2", 3.0)
    info = store_tree.info(store, ONE)
    assert (info.head, info.num_messages) == (first.message_id, 2)
    assert info.num_tokens == counted(store) == 4
    assert second.message_id is not None


def test_old_events_go_and_then_those_ended_first(store: Store) -> None:
    record = begin(store, "resp_0")
    for index in range(4):
        record = finish(store, begin(store, f"resp_{index + 1}", after=None, new=False))
        store._connection.execute(
            "UPDATE responses SET ended = ? WHERE id = ?", (float(index), record.id)
        )
    (size,) = store._connection.execute(
        "SELECT num_bytes FROM responses WHERE id = 'resp_1'"
    ).fetchone()
    store_answers.expire_events(store, 1.0, 10**9)
    assert kept(store) == [2, 3, 4]
    store_answers.expire_events(store, 1.0, 2 * size)
    assert kept(store) == [3, 4]
    assert store_answers.find(store, "", "resp_1") is not None


def kept(store: Store) -> list[int]:
    return [index for index in range(1, 5) if store_answers.events(store, f"resp_{index}")]


def test_a_dead_servers_answers_are_counted(store: Store) -> None:
    record = begin(store, "resp_1", idempotency=("key", b"1"))
    store_answers.add_chunk(store, "resp_1", Chunk(0, events(2), "x\u00e9", [3, 4]))
    store_answers.add_chunk(store, "resp_1", Chunk(2, events(1), "y", [5]))
    steer = Steer("steer_1", [{"role": "user", "content": "no"}], "no")
    store_answers.set_steers(store, "resp_1", [steer])
    assert store_recovery.recover(store, 9.0) == 1
    assert store_recovery.recover(store, 9.0) == 0
    found = store_answers.find(store, "", "resp_1")
    assert found is not None
    assert (found.status, found.reason, found.ended, found.text) == (
        "incomplete", "server_restart", 9.0, "x\u00e9y",
    )  # fmt: skip
    nodes = store_tree.line(store, ONE, None)
    assert [(node.message["content"], node.state) for node in nodes] == [
        ("q", None), ("x\u00e9y", "incomplete"), ("no", None),
    ]  # fmt: skip
    assert nodes[1].line_tokens == 5
    assert store_tree.info(store, ONE).num_tokens == counted(store)
    partial = store_answers.partial(store, ONE, record.message_id or 0, "k")
    assert (partial.prompt_ids, partial.token_ids) == ([1, 2], [3, 4, 5])
    assert store_answers.partial(store, ONE, record.message_id or 0, "other").prompt_ids is None
    assert store_answers.find_by_key(store, "", "key") == (found.id, b"1")


def test_a_fork_keeps_an_incomplete_answer_as_it_is(store: Store) -> None:
    record = begin(store, "resp_1")
    with pytest.raises(AnswerConflict):
        store_tree.fork(store, ONE, SessionKey("", "2"), record.message_id, None, 1.0)
    with pytest.raises(AnswerConflict):
        store_tree.update(store, ONE, None, record.message_id, 1.0)
    store_answers.add_chunk(store, "resp_1", Chunk(0, events(2), "x", [3]))
    store_recovery.recover(store, 9.0)
    info = store_tree.fork(store, ONE, SessionKey("", "2"), None, None, 9.0)
    partial = store_answers.partial(store, SessionKey("", "2"), info.head or 0, "k")
    assert (partial.prompt_ids, partial.token_ids, partial.text) == ([1, 2], [3], "x")


def test_answers_are_found_without_looking_at_all_of_them(store: Store) -> None:
    seen: list[str] = []
    first = finish(store, begin(store, "resp_1"))
    store._connection.set_trace_callback(seen.append)
    begin(store, "resp_2", after=first.message_id, idempotency=("key", b"1"))
    store_answers.add_chunk(store, "resp_2", Chunk(0, events(1), "x", [3]))
    store_answers.find(store, "", "resp_2")
    store_answers.find_by_key(store, "", "key")
    store_answers.events(store, "resp_2")
    store_recovery.recover(store, 3.0)
    store_answers.delete(store, "", "resp_2", 3.0)
    store.delete(ONE)
    store._connection.set_trace_callback(None)
    reads = {s for s in seen if s.startswith(("SELECT", "WITH", "UPDATE", "DELETE"))}
    scans = [
        (step, sql)
        for sql in reads
        for *_, step in store._connection.execute(f"EXPLAIN QUERY PLAN {sql}")
        if "SCAN" in step and "USING INDEX responses_unfinished" not in step
        and step not in ("SCAN CONSTANT ROW", "SCAN way")
    ]  # fmt: skip
    assert reads
    assert not scans


SCHEMA_2 = """
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
CREATE INDEX sessions_by_owner ON sessions (owner, used) WHERE lost IS NULL;
CREATE INDEX sessions_by_head ON sessions (head);
"""


def test_a_file_of_version_2_is_read_and_written(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "sessions.sqlite3")
    connection.executescript(f"PRAGMA journal_mode = WAL; {SCHEMA_2} PRAGMA user_version = 2;")
    connection.executescript(
        """
        BEGIN;
        INSERT INTO sessions VALUES (1, '', '1', 'a title', 2, 2, 3, 1.0, 2.0, NULL);
        INSERT INTO messages VALUES
            (1, 1, NULL, '{"role":"user","content":"q"}', 1.5, x'0a0000000b000000', 2, 1, 'k'),
            (2, 1, 1, '{"role":"assistant","content":"a"}', 1.5, x'0c000000', 3, 0, 'k');
        COMMIT;
        """
    )
    connection.close()
    for _ in range(2):  # migrated, then as it is
        store = Store(str(tmp_path))
        assert store.load(ONE, "k").history == History([10, 11, 12], 2)
        nodes = store_tree.line(store, ONE, None)
        assert [node.state for node in nodes] == [None, None]
        assert store_tree.info(store, ONE).title == "a title"
        store.close()
    store = Store(str(tmp_path))
    finish(store, begin(store, "resp_1", after=2))
    assert store.load(ONE, "k").history == History([10, 11, 12, 1, 2, 3, 4], 4)
    store.close()


# --- a damaged file -----------------------------------------------------------------------


def spoil(store: Store, statement: str, *values: Any) -> None:
    store._connection.execute(statement, values)


def test_damaged_events_are_told(store: Store) -> None:
    finish(store, begin(store, "resp_a"))
    spoil(store, "UPDATE chunks SET events = zeroblob(9)")
    with pytest.raises(StoreError, match="could not be kept or read"):
        store_answers.events(store, "resp_a")


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE chunks SET text = NULL WHERE response = ?",
        "UPDATE responses SET told = '{' WHERE id = ?",
        "UPDATE responses SET inputs = '[77]' WHERE id = ?",
    ],
)
def test_a_damaged_answer_keeps_no_other_from_being_made_whole(store: Store, damage: str) -> None:
    for id in ("resp_a", "resp_b"):
        begin(store, id, new=id == "resp_a", after=None)
        store_answers.add_chunk(store, id, Chunk(0, events(2), "x", [3]))
    spoil(store, damage, "resp_a")
    assert store_recovery.recover(store, 9.0) == 1
    found = store_answers.find(store, "", "resp_b")
    assert found is not None
    assert (found.status, found.reason, found.text) == ("incomplete", "server_restart", "x")
    assert store_recovery.recover(store, 10.0) == 0
