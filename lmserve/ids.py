"""Ids that say where what they name is kept: a prefix, the server's node id, and their own part."""

from __future__ import annotations

import re
import secrets

_NODE = re.compile(r"[0-9a-f]{8}")
_MINTED = re.compile(r"(?:(?:resp|sess|strm|batch)_|file-)([0-9a-f]{8})[0-9a-f]{24}")


def new_node_id() -> str:
    return secrets.token_hex(4)


def is_node_id(text: str) -> bool:
    return _NODE.fullmatch(text) is not None


def node_of(id: str) -> str | None:
    """Which server gave this id; None: it was a client that chose it, or some other server."""
    minted = _MINTED.fullmatch(id)
    return minted and minted[1]


class Ids:
    """Gives one server's."""

    def __init__(self) -> None:
        self.node = new_node_id()  # until it is known which was given before

    def new(self, prefix: str) -> str:
        return f"{prefix}{self.node}{secrets.token_hex(12)}"
