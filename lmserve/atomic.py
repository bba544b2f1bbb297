"""Files that other processes see whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


@contextmanager
def replacing(
    path: Path, mode: int = 0o644, owner: tuple[int, int] | None = None
) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` when the block ends without an error.

    `owner`: the user and group that it shall have, where this process may give it away.
    Two writers at once are safe: each has its own file, and the last one to finish stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, mode)  # mkstemp's 0600 would lock other users out of a shared cache
        if owner is not None:
            with suppress(PermissionError):
                os.chown(name, *owner)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_atomic(
    path: Path, data: bytes, mode: int = 0o644, owner: tuple[int, int] | None = None
) -> None:
    with replacing(path, mode, owner) as file:
        file.write(data)
