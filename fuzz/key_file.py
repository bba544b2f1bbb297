"""The file of API keys: a SetupError of one line, or keys with what they may."""

from __future__ import annotations

from lmserve.edge.key_file import SCOPES, keys_in
from lmserve.errors import SetupError

MAX_BYTES = 16_384
DIGEST = "ab" * 32
WORDS = (b"sha256", b"scopes", b'"admin"', b"weight", b"inf", b"nan", b"expires", b"2027-01-01",
         b"9" * 5000, b"max_requests", b"[" * 2000, b"a." * 500, DIGEST.encode())  # fmt: skip


def seeds() -> list[bytes]:
    whole = (
        f'[ann]\nsha256 = "{DIGEST}"\nscopes = ["use", "metrics"]\nrequests_per_minute = 60\n'
        "weight = 2.5\nexpires = 2027-01-31T01:02:03+01:00\n"
    )
    return [
        whole.encode(),
        f'["a@b"]\nsha256 = "{DIGEST}"\nexpires = 0001-01-01\n'.encode(),
        b"",
        b"a = " + b"[" * 5000,
        b"[a]\nweight = " + b"9" * 5000,
    ]


def check(data: bytes) -> None:
    text = data[:MAX_BYTES].decode("utf-8", "replace")
    try:
        keys = keys_in(text, "keys.toml")
    except SetupError as error:
        assert "\n" not in error.message, error.message
        return
    assert len({key.name for key in keys}) == len({key.digest for key in keys}) == len(keys)
    for key in keys:
        assert len(key.digest) == 32 and key.scopes <= set(SCOPES)
        assert 0 < key.limits.weight < 1e4
