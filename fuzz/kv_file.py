"""KV files: an EngineError, or exactly what was written. The first byte says whether the rest is
sealed again with a right checksum, as whoever can write one could."""

from __future__ import annotations

import hashlib

import msgspec

from fuzz import scratch
from lmserve.engine.kv_file import DIGEST_BYTES, LENGTH_BYTES, MAGIC, Header, KVReader
from lmserve.errors import EngineError

TOKENS = [5, 6, 7, 8]
TOKEN_BYTES = 6
FINGERPRINT = "fuzz"
SEALED = 1
WORDS = (MAGIC, b"fingerprint", b"token_bytes", b"token_ids", b"\xc4\x10", b"\xff" * 8)


def seeds() -> list[bytes]:
    header = msgspec.msgpack.encode(Header.of(FINGERPRINT, TOKEN_BYTES, TOKENS))
    body = MAGIC + len(header).to_bytes(LENGTH_BYTES, "little") + header
    body += bytes(range(len(TOKENS) * TOKEN_BYTES))
    empty = msgspec.msgpack.encode(Header.of(FINGERPRINT, TOKEN_BYTES, []))
    return [
        bytes([SEALED]) + body,
        b"\0" + body + _digest(body),
        bytes([SEALED]) + MAGIC + len(empty).to_bytes(LENGTH_BYTES, "little") + empty,
    ]


def check(data: bytes) -> None:
    sealed, body = data[:1] == bytes([SEALED]), data[1:]
    whole = body + _digest(body) if sealed else body
    reader = KVReader(scratch.written("session.kv", whole))
    try:
        reader.open(FINGERPRINT, TOKEN_BYTES)
        num_tokens = reader.num_common(TOKENS)
        half = num_tokens // 2
        reader.skip(half)
        read = bytes(reader.read(num_tokens - half))
        reader.verify()
    except EngineError:
        return
    finally:
        reader.close()
    body, digest = whole[:-DIGEST_BYTES], whole[-DIGEST_BYTES:]
    assert digest == _digest(body), "a checksum that is another was let through"
    assert len(read) == (num_tokens - half) * TOKEN_BYTES and read in body


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=DIGEST_BYTES).digest()
