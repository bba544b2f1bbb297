"""How much the store holds."""

from __future__ import annotations

from dataclasses import dataclass

from lmserve.service.store.store import Store


@dataclass(frozen=True, slots=True)
class StoreSize:
    num_sessions: int = 0
    num_messages: int = 0
    num_bytes: int = 0  # of the file


def size_of(store: Store) -> StoreSize:
    """Raises StoreError."""
    with store.transaction() as db:
        num_sessions, num_messages, num_bytes = db.execute(
            "SELECT count(*), total(num_messages), (SELECT page_count * page_size"
            " FROM pragma_page_count, pragma_page_size) FROM sessions WHERE lost IS NULL"
        ).fetchone()
    return StoreSize(num_sessions, int(num_messages), num_bytes)
