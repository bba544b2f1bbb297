"""The id of this server among others, the same after a restart."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

from lmserve.ids import is_node_id, new_node_id

NAME = "node_id"  # of the file, in the data directory

log = logging.getLogger(__name__)


def node_id(folder: Path | None) -> str:
    """That of the server whose data this folder has, which one process uses at a time; a new one
    where it has none, or where nothing is kept. Not for the loop."""
    if folder is None:
        return new_node_id()
    path = folder / NAME
    with contextlib.suppress(OSError, UnicodeDecodeError):
        text = path.read_text("ascii").strip()
        if is_node_id(text):
            return text
    id = new_node_id()
    try:
        _write(path, id)
    except OSError as error:
        log.warning(
            "%s cannot be written (%s): after a restart a proxy will not find what is kept here",
            path,
            error,
        )
    return id


def _write(path: Path, id: str) -> None:
    """Whole, or not at all."""
    other = path.with_suffix(".new")
    with open(os.open(other, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(f"{id}\n")
        file.flush()
        os.fsync(file.fileno())
    other.replace(path)
