"""What those who keep other files beside the store ask of it. Not for the loop."""

from __future__ import annotations

from pathlib import Path

from lmserve.service.store.rows import SessionKey
from lmserve.service.store.store import Store


def folder(store: Store) -> Path | None:
    """Where it is; None: in memory."""
    with store.transaction() as db:
        (path,) = db.execute("SELECT file FROM pragma_database_list WHERE name = 'main'").fetchone()
    return Path(path).parent if path else None


def living(store: Store) -> list[SessionKey]:
    """All sessions there are."""
    with store.transaction() as db:
        rows = db.execute("SELECT owner, id FROM sessions WHERE lost IS NULL").fetchall()
    return [SessionKey(*row) for row in rows]
