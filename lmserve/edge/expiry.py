"""When a certificate ends: OpenSSL knows, but Python's `ssl` tells only of a peer's."""

from __future__ import annotations

import binascii
import re
from datetime import UTC, datetime

_PEM = re.compile(rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----(.*?)-----END ", re.DOTALL)
# of ASN.1, as RFC 5280 uses them
_SEQUENCE, _VERSION, _UTC_TIME, _TIME = 0x30, 0xA0, 0x17, 0x18


def expires_s(pem: bytes) -> float:
    """In seconds since 1970, of the first certificate: others are its chain. Raises ValueError."""
    found = _PEM.search(pem)
    if found is None:
        raise ValueError("there is no certificate")
    # Certificate { tbsCertificate { [version], serialNumber, signature, issuer, validity, …
    parts = _parts(_first(_first(binascii.a2b_base64(found[1]))))
    at = 4 if parts and parts[0][0] == _VERSION else 3
    _, (kind, text) = _parts(_sequence(parts[at:]))  # notBefore, notAfter
    return _time(kind, text.decode("ascii")).timestamp()


def _first(data: bytes) -> bytes:
    """What is in the sequence that it begins with; a signature may follow."""
    return _sequence(_parts(data, 1))


def _sequence(parts: list[tuple[int, bytes]]) -> bytes:
    if not parts or parts[0][0] != _SEQUENCE:
        raise ValueError("it is no certificate")
    return parts[0][1]


def _parts(data: bytes, most: int = 5) -> list[tuple[int, bytes]]:
    """The first of them, each with its tag."""
    parts: list[tuple[int, bytes]] = []
    at = 0
    while at < len(data) and len(parts) < most:
        if len(data) < at + 2:
            raise ValueError("it is cut short")
        tag, size, at = data[at], data[at + 1], at + 2
        if size & 0x80:  # of its own, in so many bytes
            num = size & 0x7F
            size, at = int.from_bytes(data[at : at + num]), at + num
        if at + size > len(data):
            raise ValueError("it is cut short")
        parts.append((tag, data[at : at + size]))
        at += size
    return parts


def _time(kind: int, text: str) -> datetime:
    if kind == _UTC_TIME:  # two digits of its year
        text = ("19" if text[:2] >= "50" else "20") + text
    elif kind != _TIME:
        raise ValueError("it has no end")
    if not re.fullmatch(r"\d{14}Z", text, re.ASCII):
        raise ValueError("its end is in no form that is allowed")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
