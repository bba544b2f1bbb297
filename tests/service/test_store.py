from __future__ import annotations

import shutil
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec import UNSET

from lmserve.errors import InvalidField, SessionNotFound, SetupError, StoreError
from lmserve.service.store import forgetting
from lmserve.service.store import trees as store_tree
from lmserve.service.store.store import Entry, Line, SessionKey, Store
from lmserve.types import History

ONE = SessionKey("", "1")
TWO = SessionKey("", "2")
THREE = SessionKey("", "3")
NOBODY: frozenset[SessionKey] = frozenset()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(str(tmp_path))
    yield store
    store.close()


def user(text: str, ids: list[int] | None, *, restarts: bool = False, key: str = "k") -> Entry:
    return Entry({"role": "user", "content": text}, ids, restarts, key)


def answer(text: str, ids: list[int] | None, *, key: str = "k") -> Entry:
    return Entry({"role": "assistant", "content": text}, ids, text_key=key)


def turn(num: int, *, first: bool = False, key: str = "k") -> list[Entry]:
    """Two messages, of two tokens and one."""
    ids = [num, num + 1]
    return [user(f"q{num}", ids, restarts=first, key=key), answer(f"a{num}", [num + 2], key=key)]


def history(store: Store, key: SessionKey = ONE, text_key: str = "k") -> History | None:
    return store.load(key, text_key).history


# --- lines --------------------------------------------------------------------------------


def test_what_is_added_is_found_in_order(store: Store) -> None:
    assert store.load(ONE, "k") == Line()
    store.add(ONE, turn(10, first=True), 1.0)
    store.add(ONE, turn(20), 2.0)
    line = store.load(ONE, "k")
    assert [message["content"] for message in line.messages] == ["q10", "a10", "q20", "a20"]
    assert line.history == History([10, 11, 12, 20, 21, 22], 4)
    assert line.num_tokens == 6


def test_sessions_and_owners_do_not_meet(store: Store) -> None:
    other = SessionKey("somebody", "1")
    store.add(ONE, turn(10, first=True), 1.0)
    store.add(other, turn(20, first=True), 1.0)
    store.delete(ONE)
    assert history(store) is None
    assert history(store, other) == History([20, 21, 22], 2)


def test_a_message_without_tokens_ends_what_is_known(store: Store) -> None:
    store.add(ONE, turn(10, first=True), 1.0)
    store.add(ONE, [user("more", None), answer("said elsewhere", None)], 2.0)
    store.add(ONE, turn(20), 3.0)  # it cannot be known what came before these
    assert history(store) == History([10, 11, 12], 2)
    assert len(store.load(ONE, "k").messages) == 6


def test_tokens_that_restart_hold_the_whole_line(store: Store) -> None:
    store.add(ONE, [user("more", None)], 1.0)
    store.add(ONE, turn(20, first=True), 2.0)
    line = store.load(ONE, "k")
    assert line.history == History([20, 21, 22], 3)
    assert line.num_tokens == 3


def test_a_restart_without_its_answer_is_no_history(store: Store) -> None:
    store.add(ONE, turn(10, first=True), 1.0)
    store.add(ONE, [user("again", [1, 2, 3], restarts=True)], 2.0)
    assert history(store) is None


def test_tokens_of_another_model_are_not_used(store: Store) -> None:
    store.add(ONE, turn(10, first=True, key="old"), 1.0)
    assert history(store, text_key="new") is None
    assert store.load(ONE, "new").num_tokens == 3
    store.add(ONE, turn(20, first=True, key="new"), 2.0)
    assert history(store, text_key="new") == History([20, 21, 22], 4)
    assert history(store, text_key="old") is None


def test_a_long_line_is_read_and_deleted(store: Store) -> None:
    for num in range(1200):  # beyond the depth of a cascade
        store.add(ONE, turn(num, first=num == 0), 1.0)
    line = store.load(ONE, "k")
    assert line.history is not None
    assert (len(line.messages), line.history.num_messages, line.num_tokens) == (2400, 2400, 3600)
    store.delete(ONE)
    assert store.load(ONE, "k") == Line()
    (left,) = store._connection.execute("SELECT count(*) FROM messages").fetchone()
    assert left == 0


def test_odd_text_is_kept_as_it_is(store: Store) -> None:
    text = "\x00 \u2028 \N{PILE OF POO} ' \" \\"
    store.add(ONE, [Entry({"role": "user", "content": text, "name": None})], 1.0)
    assert store.load(ONE, "k").messages == [{"role": "user", "content": text, "name": None}]


def test_half_of_a_surrogate_pair_is_the_callers_mistake(store: Store) -> None:
    with pytest.raises(InvalidField, match="surrogate"):
        store.add(ONE, [user("\ud800", None)], 1.0)
    assert store.load(ONE, "k") == Line()


# --- what is forgotten --------------------------------------------------------------------


def test_an_old_session_is_forgotten_and_told_once(store: Store) -> None:
    store.add(ONE, turn(10, first=True), 1.0)
    store.add(TWO, turn(20, first=True), 5.0)
    assert forgetting.expire(store, 5.0, "too old", NOBODY, 9.0) == 1
    assert store.load(ONE, "k") == Line()
    assert history(store, TWO) is not None
    assert (forgetting.take_lost(store, ONE), forgetting.take_lost(store, ONE)) == ("too old", None)


def test_a_busy_session_does_not_expire(store: Store) -> None:
    store.add(ONE, turn(10, first=True), 1.0)
    assert forgetting.expire(store, 5.0, "too old", {ONE}, 9.0) == 0
    assert history(store) is not None


@pytest.mark.parametrize(
    ("max_sessions", "max_tokens", "gone"),
    [(3, 9, 0), (2, 9, 1), (3, 8, 1), (1, 9, 2), (3, 3, 2), (3, 0, 3)],
)
def test_the_session_unused_longest_makes_room(
    store: Store, max_sessions: int, max_tokens: int, gone: int
) -> None:
    for used, key in enumerate((TWO, ONE, THREE)):
        store.add(key, turn(10, first=True), float(used))
    assert forgetting.make_room(store, max_sessions, max_tokens, "room", NOBODY, 9.0) == gone
    lost = [key for key in (TWO, ONE, THREE) if forgetting.take_lost(store, key)]
    assert lost == [TWO, ONE, THREE][:gone]


def test_texts_that_were_never_run_take_room_too(store: Store) -> None:
    store.add(ONE, [Entry({"role": "user", "content": "x" * 4000})], 0.0)
    assert store.load(ONE, "k").num_tokens == 0
    store.add(TWO, turn(10, first=True), 1.0)
    assert forgetting.make_room(store, 9, 1000, "room", NOBODY, 9.0) == 1
    assert forgetting.take_lost(store, ONE) == "room"
    assert history(store, TWO) is not None


def test_a_line_rendered_anew_takes_its_room_twice(store: Store) -> None:
    store.add(ONE, turn(10, first=True), 0.0)
    store.add(ONE, turn(20, first=True), 1.0)
    assert store.load(ONE, "k").num_tokens == 3
    assert forgetting.make_room(store, 9, 5, "room", NOBODY, 9.0) == 1


def test_a_busy_session_makes_no_room(store: Store) -> None:
    for used, key in enumerate((ONE, TWO)):
        store.add(key, turn(10, first=True), float(used))
    assert forgetting.make_room(store, 1, 100, "room", {ONE}, 9.0) == 1
    assert forgetting.take_lost(store, TWO) == "room"
    assert history(store, ONE) is not None


def test_a_forgotten_session_begins_anew(store: Store) -> None:
    store.add(ONE, turn(10, first=True), 1.0)
    forgetting.expire(store, 5.0, "too old", NOBODY, 9.0)
    store.add(ONE, turn(20, first=True), 10.0)
    assert history(store) == History([20, 21, 22], 2)
    assert forgetting.take_lost(store, ONE) is None


def test_a_deleted_session_leaves_no_reason(store: Store) -> None:
    store.add(ONE, turn(10, first=True), 1.0)
    forgetting.expire(store, 5.0, "too old", NOBODY, 9.0)
    store.delete(ONE)
    assert forgetting.take_lost(store, ONE) is None


def test_reasons_are_bounded(store: Store) -> None:
    for now, key in enumerate((ONE, TWO, THREE)):
        store.add(key, turn(10, first=True), 0.0)
        forgetting.expire(store, 0.5, "too old", NOBODY, float(now))
    forgetting.drop_lost(store, 10**30)  # as many as there are
    forgetting.drop_lost(store, 2)
    assert [forgetting.take_lost(store, key) for key in (ONE, TWO, THREE)] == [
        None,
        "too old",
        "too old",
    ]


# --- the disk -----------------------------------------------------------------------------


def test_a_full_disk_changes_nothing(store: Store) -> None:
    store.add(ONE, turn(10, first=True), 1.0)
    (pages,) = store._connection.execute("PRAGMA page_count").fetchone()
    store._connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreError, match="full"):
        store.add(ONE, [user("x" * 100_000, [1])], 2.0)
    assert history(store) == History([10, 11, 12], 2)
    store._connection.execute("PRAGMA max_page_count = 1000000")
    store.add(ONE, turn(20), 3.0)
    assert len(store.load(ONE, "k").messages) == 4


def test_a_read_only_database_is_still_read(store: Store) -> None:
    store.add(ONE, turn(10, first=True), 1.0)
    store._connection.execute("PRAGMA query_only = ON")
    with pytest.raises(StoreError, match="readonly"):
        store.add(ONE, turn(20), 2.0)
    assert forgetting.take_lost(store, ONE) is None
    assert history(store) == History([10, 11, 12], 2)


def test_what_was_added_is_there_without_a_goodbye(store: Store, tmp_path: Path) -> None:
    store.add(ONE, turn(10, first=True), 1.0)
    crashed = tmp_path / "copy"
    crashed.mkdir()
    for name in ("sessions.sqlite3", "sessions.sqlite3-wal"):
        shutil.copy(tmp_path / name, crashed / name)  # as a killed process leaves them
    after = Store(str(crashed))
    try:
        assert history(after) == History([10, 11, 12], 2)
    finally:
        after.close()


def test_it_is_kept_over_a_restart(tmp_path: Path) -> None:
    for num in range(3):
        store = Store(str(tmp_path / "new" / "folder"))
        store.add(ONE, turn(num, first=num == 0), 1.0)
        assert len(store.load(ONE, "k").messages) == 2 * (num + 1)
        store.close()


def test_nobody_else_may_read_it(store: Store, tmp_path: Path) -> None:
    store.add(ONE, turn(10, first=True), 1.0)
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path.name


def test_a_damaged_file_stops_the_start(tmp_path: Path) -> None:
    path = tmp_path / "sessions.sqlite3"
    path.write_bytes(b"this is no database" * 100)
    with pytest.raises(SetupError, match="move it away") as caught:
        Store(str(tmp_path))
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    path.unlink()
    Store(str(tmp_path)).close()  # the lock was given back


def test_a_damaged_schema_stops_the_start(tmp_path: Path) -> None:
    Store(str(tmp_path)).close()
    path = tmp_path / "sessions.sqlite3"
    path.write_bytes(path.read_bytes().replace(b"CREATE", b"CR\xe7ATE"))
    with pytest.raises(SetupError, match="move it away"):
        Store(str(tmp_path))


def test_a_damaged_page_fails_one_request(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.add(ONE, [user("x" * 200_000, [1], restarts=True)], 1.0)
    store.add(TWO, turn(10, first=True), 1.0)
    store.close()
    path = tmp_path / "sessions.sqlite3"
    data = bytearray(path.read_bytes())
    at = data.rindex(b"x" * 1000)
    data[at - 3000 : at + 1000] = b"\xff" * 4000
    path.write_bytes(data)
    store = Store(str(tmp_path))
    try:
        with pytest.raises(StoreError):
            store.load(ONE, "k")
        assert history(store, TWO) is not None
    finally:
        store.close()


def test_a_file_of_a_newer_version_stops_the_start(tmp_path: Path) -> None:
    Store(str(tmp_path)).close()
    with sqlite3.connect(tmp_path / "sessions.sqlite3") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(SetupError, match="another version of lmserve .schema 99"):
        Store(str(tmp_path))


def test_two_servers_do_not_share_a_folder(store: Store, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="another server uses it; give .* --data-dir"):
        Store(str(tmp_path))


def test_a_folder_that_cannot_be_made_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="cannot keep conversations in .*--data-dir"):
        Store(str(tmp_path / "file" / "below"))


def test_without_a_folder_the_users_own_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    first = Store(None)
    assert (tmp_path / "lmserve" / "sessions.sqlite3").exists()
    assert not caplog.records
    second = Store(None)  # that of another server, at the same time
    (record,) = caplog.records
    assert "will not survive a restart" in record.getMessage()
    assert "--data-dir" in record.getMessage()
    second.add(ONE, turn(10, first=True), 1.0)
    assert history(second) == History([10, 11, 12], 2)
    assert history(first) is None
    first.close()
    second.close()


def test_a_home_that_cannot_be_written_costs_the_memory_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))
    Store(None).close()
    assert "will not survive a restart" in caplog.text


# --- branches -----------------------------------------------------------------------------


def test_a_branch_goes_on_from_its_own_line(store: Store) -> None:
    _, first = store.add(ONE, turn(10, first=True), 1.0)
    _, second = store.add(ONE, turn(20), 2.0)
    _, sibling = store.add(ONE, turn(30), 3.0, after=first)
    line = store.load(ONE, "k")
    assert (line.end, line.token_ids) == (sibling, [10, 11, 12, 30, 31, 32])
    assert line.num_tokens == 6
    other = store.load(ONE, "k", second)
    assert (other.end, other.token_ids) == (second, [10, 11, 12, 20, 21, 22])
    assert store.load(ONE, "k", None) == Line()
    store.add(ONE, turn(40, first=True), 4.0, after=None)
    assert store.load(ONE, "k").token_ids == [40, 41, 42]
    assert store.load(ONE, "k", sibling).token_ids == [10, 11, 12, 30, 31, 32]


def test_all_tokens_are_known_up_to_a_question_too(store: Store) -> None:
    store.add(ONE, turn(10, first=True), 1.0)
    (question,) = store.add(ONE, [user("q", [20, 21])], 2.0)
    line = store.load(ONE, "k")
    assert line.history == History([10, 11, 12], 2)
    assert line.token_ids == [10, 11, 12, 20, 21]
    assert store.load(ONE, "other").token_ids is None
    store.add(ONE, [user("not run", None)], 3.0)
    assert store.load(ONE, "k").token_ids is None
    assert store.load(ONE, "k", question).token_ids == line.token_ids


def test_a_restart_that_runs_the_same_tokens_on_keeps_what_they_tell(store: Store) -> None:
    store.add(ONE, turn(10, first=True), 1.0)
    whole = [10, 11, 12, 20, 21]
    store.add(ONE, [user("w", None), user("e", whole, restarts=True)], 2.0)
    line = store.load(ONE, "k")
    assert line.history == History([10, 11, 12], 2)
    assert (line.token_ids, line.num_tokens) == (whole, 5)
    store.add(ONE, [user("r", None), user("t", whole, restarts=True, key="new")], 3.0)
    assert history(store) is None
    assert history(store, text_key="new") is None
    store.add(ONE, [answer("a", [1]), *turn(50, first=True)], 4.0)
    assert history(store) == History([50, 51, 52], 9)


def test_a_message_never_has_the_id_of_a_deleted_one(store: Store) -> None:
    first = store.add(ONE, turn(10, first=True), 1.0)
    store.delete(ONE)
    assert not set(first) & set(store.add(ONE, turn(20, first=True), 2.0))


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM messages WHERE session = ?1",
        "SELECT id FROM messages WHERE session = ?1 AND parent IS ?2 ORDER BY id",
    ],
)
def test_other_sessions_are_not_gone_through(store: Store, statement: str) -> None:
    """Neither by it nor by what looks after references."""
    plan = store._connection.execute(
        f"EXPLAIN QUERY PLAN {statement}", (1, None)[: statement.count("?")]
    )
    steps = [step for *_, step in plan]
    assert steps and not any("SCAN" in step for step in steps), steps


def test_what_is_forgotten_leaves_no_words(store: Store) -> None:
    store.add(ONE, turn(10, first=True), 1.0)
    store_tree.update(store, ONE, "a title", UNSET, 1.0)
    forgetting.expire(store, 5.0, "it was old", NOBODY, 6.0)
    rows = store._connection.execute("SELECT * FROM sessions").fetchall()
    assert rows == [(1, "", "1", None, None, 0, 0, 1.0, 6.0, "it was old")]
    assert store._connection.execute("SELECT count(*) FROM messages").fetchone() == (0,)


# --- files of versions before ---------------------------------------------------------------

SCHEMA_1 = """
CREATE TABLE sessions (
    key INTEGER PRIMARY KEY,
    owner TEXT NOT NULL,
    id TEXT NOT NULL,
    head INTEGER REFERENCES messages (id) DEFERRABLE INITIALLY DEFERRED,
    num_tokens INTEGER NOT NULL,
    created REAL NOT NULL,
    used REAL NOT NULL,
    lost TEXT,
    UNIQUE (owner, id)
);
CREATE INDEX sessions_by_use ON sessions (used, num_tokens) WHERE lost IS NULL;
CREATE INDEX sessions_lost ON sessions (used) WHERE lost IS NOT NULL;
CREATE TABLE messages (
    id INTEGER PRIMARY KEY,
    session INTEGER NOT NULL REFERENCES sessions (key) DEFERRABLE INITIALLY DEFERRED,
    parent INTEGER REFERENCES messages (id) DEFERRABLE INITIALLY DEFERRED,
    message TEXT NOT NULL,
    created REAL NOT NULL,
    token_ids BLOB,
    line_tokens INTEGER NOT NULL,
    restarts INTEGER NOT NULL,
    text_key TEXT
);
CREATE INDEX messages_by_session ON messages (session);
CREATE INDEX messages_by_parent ON messages (parent);
"""


def test_a_file_of_the_version_before_is_read_and_written(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "sessions.sqlite3") as connection:
        connection.executescript(f"{SCHEMA_1} PRAGMA user_version = 1;")
        connection.executescript(
            """
            BEGIN;
            INSERT INTO sessions VALUES (1, '', '1', 2, 3, 1.0, 2.0, NULL);
            INSERT INTO sessions VALUES (2, '', '2', NULL, 0, 1.0, 2.0, 'it was old');
            INSERT INTO messages VALUES
                (1, 1, NULL, '{"role":"user","content":"q"}', 1.5, x'0a0000000b000000', 2, 1, 'k'),
                (2, 1, 1, '{"role":"assistant","content":"a"}', 1.5, x'0c000000', 3, 0, 'k');
            COMMIT;
            """
        )
    connection.close()
    for _ in range(2):  # migrated, then as it is
        store = Store(str(tmp_path))
        assert history(store) == History([10, 11, 12], 2)
        found = store_tree.info(store, ONE)
        assert (found.title, found.head, found.num_messages, found.num_tokens) == (None, 2, 2, 3)
        assert (found.created, found.used) == (1.0, 2.0)
        with pytest.raises(SessionNotFound, match="it was old"):
            store_tree.info(store, TWO)
        store.close()
    store = Store(str(tmp_path))
    assert store.add(ONE, turn(20), 3.0) == [3, 4]
    assert history(store) == History([10, 11, 12, 20, 21, 22], 4)
    fresh = tmp_path / "fresh"
    Store(str(fresh)).close()
    assert _schema(tmp_path) == _schema(fresh)
    store.delete(ONE)
    assert list(store._connection.execute("PRAGMA foreign_key_check")) == []
    with pytest.raises(sqlite3.IntegrityError):  # references are looked after, as ever
        store._connection.execute(
            "INSERT INTO messages (session, message, created, line_tokens, restarts)"
            " VALUES (99, '', 0, 0, 0)"
        )
    store.close()


def test_a_migration_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "sessions.sqlite3"
    with sqlite3.connect(path) as connection:
        connection.executescript(f"{SCHEMA_1} PRAGMA user_version = 1;")
        connection.execute("CREATE INDEX sessions_by_owner ON sessions (owner)")  # in its way
    connection.close()
    before = _schema(tmp_path)
    with pytest.raises(SetupError):
        Store(str(tmp_path))
    assert _schema(tmp_path) == before


def _schema(folder: Path) -> set[tuple[str, frozenset[tuple[object, ...]]]]:
    """Each table's columns and each index's, in whatever order."""
    connection = sqlite3.connect(folder / "sessions.sqlite3")
    try:
        names = connection.execute("SELECT type, name FROM sqlite_master").fetchall()
        return {
            (
                name,
                frozenset(
                    row[1 if kind == "table" else 2 :]
                    for row in connection.execute(f"PRAGMA {kind}_xinfo ({name})")
                ),
            )
            for kind, name in names
            if not name.startswith("sqlite_autoindex")
        }
    finally:
        connection.close()
