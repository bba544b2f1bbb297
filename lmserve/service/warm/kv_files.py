"""Files with the KV of idle conversations: one folder, one file a session, bounded in bytes.

The engine writes and reads them; here they are named, found, linked and removed. A file's name is
all that says whose it is.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

from lmserve.service.store.rows import SessionKey

_SUFFIX = ".kv"


def name_of(key: SessionKey) -> str:
    """Of the session, for those who need not know whose it is."""
    text = f"{key.owner}\0{key.id}"
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


class KvFiles:
    """`has` and `num_bytes` may be asked anywhere; the rest blocks, and one thread at a time calls
    it. Raises OSError."""

    def __init__(self, folder: Path, max_bytes: int):
        self.num_bytes = 0
        self._folder = folder
        self._max_bytes = max_bytes
        self._sizes: dict[str, int] = {}  # by name, that unused longest first

    def open(self) -> None:
        """Finds what an earlier server left; what it had not finished goes, and links; a folder
        is left alone."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.chmod(0o700)
        found = []
        for path in self._folder.iterdir():
            about = path.lstat()
            if path.suffix == _SUFFIX and stat.S_ISREG(about.st_mode):
                found.append((about.st_mtime, path.stem, about.st_size))
            elif _SUFFIX in path.name and not stat.S_ISDIR(about.st_mode):
                path.unlink(missing_ok=True)
        for _, name, size in sorted(found):
            self._add(name, size)

    def has(self, key: SessionKey) -> bool:
        return name_of(key) in self._sizes

    def names(self) -> list[str]:
        return list(self._sizes)

    def path(self, key: SessionKey) -> Path:
        return self._path(name_of(key))

    def make_room(self, key: SessionKey, num_bytes: int) -> bool:
        """For a file of this session, about so large; its old one will be replaced. Says False
        where there cannot be so much."""
        if num_bytes > self._max_bytes:
            return False
        own = name_of(key)
        others = (name for name in self.names() if name != own)
        while self.num_bytes - self._sizes.get(own, 0) + num_bytes > self._max_bytes:
            self._remove(next(others))
        return True

    def written(self, key: SessionKey) -> None:
        """The engine has written it."""
        name, path = name_of(key), self.path(key)
        path.chmod(0o600)
        self._forget(name)
        self._add(name, path.stat().st_size)

    def used(self, key: SessionKey) -> None:
        name = name_of(key)
        if name in self._sizes:
            os.utime(self._path(name))
            self._add(name, self._forget(name))

    def link(self, key: SessionKey, new_key: SessionKey) -> None:
        """The other session begins with the same file. A file is replaced, never written to."""
        name, new_name = name_of(key), name_of(new_key)
        if name in self._sizes and new_name not in self._sizes:
            os.link(self._path(name), self._path(new_name))
            self._add(new_name, self._sizes[name])

    def remove(self, key: SessionKey) -> None:
        self._remove(name_of(key))

    def remove_others(self, names: Iterable[str], keys: Iterable[SessionKey]) -> int:
        """Those of these names that are none of these sessions'. Says how many there were."""
        orphans = set(names).intersection(self._sizes).difference(map(name_of, keys))
        for name in orphans:
            self._remove(name)
        return len(orphans)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}{_SUFFIX}"

    def _remove(self, name: str) -> None:
        self._forget(name)
        with suppress(FileNotFoundError):
            self._path(name).unlink()

    def _add(self, name: str, size: int) -> None:
        self._sizes[name] = size
        self.num_bytes += size

    def _forget(self, name: str) -> int:
        size = self._sizes.pop(name, 0)
        self.num_bytes -= size
        return size
