"""KV on disk: one file is the KV of one beginning, and whose it is.

    magic (8)  header length (u32)  header (msgpack)  KV  BLAKE2b of all before (32)

The KV lies token by token, each (layers, keys and values, kv heads, head_dim): any block size
can take it, and a part of the tokens is a part of the file. Nothing in a file is trusted before
the whole is verified; what is odd is refused with an EngineError that says why. No torch here.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Callable
from functools import partial
from io import FileIO
from pathlib import Path
from typing import TypeVar

import msgspec

from lmserve.errors import EngineError
from lmserve.messages import pack_ids, unpack_ids

MAGIC = b"lmsvKV\x00\x01"  # the last byte is the version
LENGTH_BYTES = 4
DIGEST_BYTES = 32
MAX_HEADER_BYTES = 16 * 2**20  # four million token ids
PIECE_BYTES = 4 * 2**20  # of what is only verified

Buffer = bytes | bytearray | memoryview
T = TypeVar("T")


class Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`fingerprint` stands for all that decides what a token's KV is."""

    fingerprint: str
    token_bytes: int  # KV of one token
    token_ids: bytes

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids) // 4

    @classmethod
    def of(cls, fingerprint: str, token_bytes: int, tokens: list[int]) -> Header:
        return cls(fingerprint=fingerprint, token_bytes=token_bytes, token_ids=pack_ids(tokens))


_decoder = msgspec.msgpack.Decoder(Header)


class KVWriter:
    """Writes a file that appears whole under its name, or not at all. It is not synced: after a
    power cut it may be damaged, and is then refused."""

    def __init__(self, path: Path):
        self._path = path
        self._file: FileIO | None = None
        self._name = ""
        self._digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
        self._left = 0

    def open(self, header: Header) -> None:
        path = self._path
        self._left = header.num_tokens * header.token_bytes
        try:
            handle, self._name = tempfile.mkstemp(
                dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"
            )
        except OSError as error:
            raise _failed("write", path, error) from error
        self._file = os.fdopen(handle, "wb", buffering=0)  # mkstemp made it readable to us alone
        body = msgspec.msgpack.encode(header)
        self._put(MAGIC + len(body).to_bytes(LENGTH_BYTES, "little") + body)

    def write(self, data: Buffer) -> None:
        """The KV of the next tokens."""
        self._left -= len(data)
        self._put(data)

    def commit(self) -> int:
        """All is written: the file takes its name. Returns its size."""
        assert self._file is not None and self._left == 0, "the KV of other tokens than named"
        self._put(self._digest.digest())
        num_bytes = self._file.tell()
        try:
            self._file.close()
            os.replace(self._name, self._path)
        except OSError as error:
            raise _failed("write", self._path, error) from error
        self._file = None
        return num_bytes

    def discard(self) -> None:
        """Leaves nothing, unless committed. Idempotent."""
        if self._file is not None:
            self._file.close()
            self._file = None
            Path(self._name).unlink(missing_ok=True)

    def _put(self, data: Buffer) -> None:
        assert self._file is not None
        self._digest.update(data)
        rest = memoryview(data)
        try:
            while rest:  # unbuffered: a write may be short
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self.discard()
            raise _failed("write", self._path, error) from error


class KVReader:
    """Reads a file once from its beginning to its end. What it gave is only to be believed
    after `verify`."""

    def __init__(self, path: Path):
        self._path = path
        self._file: FileIO | None = None
        self._digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
        self._token_bytes = self._left = 0
        self._token_ids: list[int] = []

    def open(self, fingerprint: str, token_bytes: int) -> None:
        """Checks all but the KV itself."""
        self._file = self._tried(lambda: _open_regular(self._path))
        header = self._read_header(self._file, fingerprint, token_bytes)
        self._token_ids, self._token_bytes = unpack_ids(header.token_ids), token_bytes
        self._left = header.num_tokens * token_bytes

    def num_common(self, tokens: list[int]) -> int:
        """How many first tokens are those of the file, at least one."""
        num = 0
        for one, other in zip(self._token_ids, tokens, strict=False):
            if one != other:
                break
            num += 1
        if not num:
            raise self._refused("it is of another text")
        return num

    def read(self, num_tokens: int) -> bytearray:
        """The KV of the next tokens."""
        num_bytes = num_tokens * self._token_bytes
        assert num_bytes <= self._left
        self._left -= num_bytes
        return self._take(num_bytes)

    def skip(self, num_tokens: int) -> None:
        self._skip(num_tokens * self._token_bytes)

    def verify(self) -> None:
        """Reads the rest. Raises EngineError where a byte is not as it was written."""
        self._skip(self._left)
        expected = self._digest.digest()
        if self._take(DIGEST_BYTES) != expected:
            raise self._refused("it is damaged: its checksum is another")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _read_header(self, file: FileIO, fingerprint: str, token_bytes: int) -> Header:
        if self._take(len(MAGIC)) != MAGIC:
            raise self._refused("it is not a KV file of this version")
        num_bytes = int.from_bytes(self._take(LENGTH_BYTES), "little")
        if num_bytes > MAX_HEADER_BYTES:
            raise self._refused(f"it is damaged: its header would have {num_bytes} bytes")
        try:
            header = _decoder.decode(self._take(num_bytes))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._refused(f"it is damaged: {error}") from error
        if header.fingerprint != fingerprint or header.token_bytes != token_bytes:
            raise self._refused("it is of another model, or of one run in another way")
        if not header.num_tokens or len(header.token_ids) % 4:
            raise self._refused("it is damaged: its token ids are cut")
        size = len(MAGIC) + LENGTH_BYTES + num_bytes + header.num_tokens * token_bytes
        found = self._tried(lambda: os.fstat(file.fileno())).st_size
        if found != size + DIGEST_BYTES:
            raise self._refused(f"it is damaged: it has {found} bytes, not {size + DIGEST_BYTES}")
        return header

    def _skip(self, num_bytes: int) -> None:
        self._left -= num_bytes
        while num_bytes:
            num_bytes -= len(self._take(min(num_bytes, PIECE_BYTES)))

    def _take(self, num_bytes: int) -> bytearray:
        """The next bytes, counted into the checksum."""
        file = self._file
        assert file is not None
        data = bytearray(num_bytes)
        rest = memoryview(data)
        while rest:
            num_read = self._tried(partial(file.readinto, rest))
            if not num_read:
                raise self._refused("it is damaged: it ends too soon")
            rest = rest[num_read:]
        self._digest.update(data)
        return data

    def _tried(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except OSError as error:
            raise _failed("read", self._path, error) from error

    def _refused(self, why: str) -> EngineError:
        return EngineError(f"the KV file {self._path} is refused: {why}")


def _open_regular(path: Path) -> FileIO:
    """Never through a link, and never something that would make us wait."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    handle = os.open(path, flags)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise EngineError(f"the KV file {path} is refused: it is not a regular file")
        return os.fdopen(handle, "rb", buffering=0)
    except BaseException:
        os.close(handle)
        raise


def _failed(verb: str, path: Path, error: OSError) -> EngineError:
    return EngineError(f"cannot {verb} the KV file {path}: {error.strerror or error}")
