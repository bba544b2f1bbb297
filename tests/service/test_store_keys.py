from __future__ import annotations

from pathlib import Path

from lmserve.service.store import forgetting
from lmserve.service.store import keys as store_keys
from lmserve.service.store.file import open_memory
from lmserve.service.store.store import Entry, SessionKey, Store
from tests.service.talk import user


def test_a_store_tells_where_it_is(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "data"))
    try:
        assert store_keys.folder(store) == tmp_path / "data"
    finally:
        store.close()


def test_one_in_memory_is_nowhere() -> None:
    store = Store(open_memory())
    try:
        assert store_keys.folder(store) is None
    finally:
        store.close()


def test_forgotten_sessions_are_none(tmp_path: Path) -> None:
    store = Store(open_memory())
    try:
        for now, id in enumerate("ab"):
            store.add(SessionKey("owner", id), [Entry(user("hi"))], float(now))
        forgetting.expire(store, 1.0, "too old", (), 2.0)
        assert store_keys.living(store) == [SessionKey("owner", "b")]
    finally:
        store.close()
