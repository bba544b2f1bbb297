"""Which weights these are, told from the files without reading all of them. No torch here."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from lmserve.errors import ModelError

HEAD_BYTES = 8 * 2**20  # read whole: a header with its vocabulary, a config, a tokenizer
NUM_SAMPLES = 1024  # of what follows, spread evenly
SAMPLE_BYTES = 4096
NAMES = ("config.json", "tokenizer.json", "tokenizer.model", "*.safetensors")


class WeightFiles:
    """The files of a model as they were when it was loaded."""

    def __init__(self, path: Path):
        self._path = path
        self._stats = {file: _state(file) for file in _files(path)}

    def digest(self) -> str:
        """Sizes, times, the heads, and samples of the rest. Raises ModelError where a file is no
        longer the one that was loaded: what it says now is of other weights."""
        digest = hashlib.blake2b(digest_size=16)
        for file, state in self._stats.items():
            digest.update(repr((file.name, state)).encode())
            try:
                for part in _parts(file, state[0]):
                    digest.update(part)
                now = _state(file)
            except OSError as error:
                raise ModelError(f"cannot read {file}: {error.strerror or error}") from error
            if now != state:
                raise ModelError(f"{file} was changed after it was loaded; restart lmserve")
        return digest.hexdigest()


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for name in NAMES for file in path.glob(name))
    return [path]


def _state(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_size, found.st_mtime_ns


def _parts(file: Path, size: int) -> Iterator[bytes]:
    with file.open("rb") as opened:
        yield opened.read(HEAD_BYTES)
        step = max(SAMPLE_BYTES, -(-(size - HEAD_BYTES) // NUM_SAMPLES))
        for offset in range(HEAD_BYTES, size, step):
            yield os.pread(opened.fileno(), SAMPLE_BYTES, offset)
