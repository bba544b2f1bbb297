"""When a certificate expires, as OpenSSL says it; and of anything else, ValueError."""

from __future__ import annotations

import base64
import shutil
import ssl
import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmserve.edge.expiry import expires_s

_TIMES = st.datetimes(datetime(1950, 1, 1), datetime(9999, 12, 31)).map(
    lambda time: time.replace(microsecond=0, tzinfo=UTC)
)


def _part(tag: int, *parts: bytes) -> bytes:
    data = b"".join(parts)
    size = len(data).to_bytes(2)
    return bytes((tag, len(data))) + data if len(data) < 128 else bytes((tag, 0x82)) + size + data


def _written(time: datetime) -> bytes:
    """As RFC 5280 wants it: with two digits of the year as far as that goes."""
    if time.year < 2050:
        return _part(0x17, time.strftime("%y%m%d%H%M%SZ").encode())
    return _part(0x18, time.strftime("%Y%m%d%H%M%SZ").encode())


def _certificate(begin: bytes, end: bytes, *, version: bool = True, issuer: int = 300) -> bytes:
    head = [_part(0xA0, _part(2, b"\2"))] if version else []
    names = _part(0x30, bytes(issuer))
    inner = _part(0x30, *head, _part(2, b"\7"), names, names, _part(0x30, begin, end), names)
    return _part(0x30, inner, names, names)


def _pem(der: bytes, kind: str = "CERTIFICATE") -> bytes:
    text = base64.encodebytes(der).decode()
    return f"subject=CN = x\n-----BEGIN {kind}-----\n{text}-----END {kind}-----\n".encode()


@given(_TIMES, _TIMES, st.booleans(), st.integers(0, 600))
def test_any_time(begin: datetime, end: datetime, version: bool, issuer: int) -> None:
    der = _certificate(_written(begin), _written(end), version=version, issuer=issuer)
    assert expires_s(_pem(der)) == end.timestamp()


def test_the_first_is_told_of() -> None:
    times = [datetime(2030, 1, 1, tzinfo=UTC), datetime(2040, 1, 1, tzinfo=UTC)]
    chain = [_certificate(_written(times[0]), _written(time)) for time in times]
    key = _pem(b"no certificate", "PRIVATE KEY")
    assert expires_s(key + _pem(chain[0]) + _pem(chain[1])) == times[0].timestamp()
    assert expires_s(_pem(chain[1], "TRUSTED CERTIFICATE") + key) == times[1].timestamp()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command")
@pytest.mark.parametrize(("days", "tag"), [(30, b"\x17\x0d"), (36500, b"\x18\x0f")])
def test_of_openssl(tmp_path: Path, days: int, tag: bytes) -> None:
    """With a year of two digits, and of four."""
    new = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=x"
    made = f"{new} -days {days} -keyout key.pem -out cert.pem"
    subprocess.run(made.split(), cwd=tmp_path, check=True, capture_output=True)
    told = subprocess.run(
        "openssl x509 -in cert.pem -noout -enddate".split(),
        cwd=tmp_path, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    pem = (tmp_path / "cert.pem").read_bytes()
    assert tag in ssl.PEM_cert_to_DER_cert(pem.decode())
    assert expires_s(pem) == ssl.cert_time_to_seconds(told.strip().removeprefix("notAfter="))


_NOW = _written(datetime(2026, 11, 24, tzinfo=UTC))
_WRONG = {
    "nothing": b"",
    "a key": _pem(b"x", "PRIVATE KEY"),
    "no sequence": _pem(_part(2, b"\1")),
    "empty": _pem(_part(0x30, _part(0x30))),
    "no end": _pem(_certificate(_NOW, b"")),
    "an end that is no time": _pem(_certificate(_NOW, _part(2, b"\1"))),
    "a time of a zone": _pem(_certificate(_NOW, _part(0x18, b"20300101000000+0100"))),
    "a thirteenth month": _pem(_certificate(_NOW, _part(0x17, b"301301000000Z"))),
    "no base64": b"-----BEGIN CERTIFICATE-----\nA\n-----END CERTIFICATE-----\n",
}


@pytest.mark.parametrize("what", _WRONG)
def test_what_is_none(what: str) -> None:
    with pytest.raises(ValueError, match="."):
        expires_s(_WRONG[what])


@given(st.binary())
def test_of_garbage_a_value_error(data: bytes) -> None:
    for pem in (data, _pem(data)):
        with pytest.raises(ValueError, match="."):
            expires_s(pem)


@given(st.data())
def test_of_a_broken_one_a_value_error_at_most(data: st.DataObject) -> None:
    der = bytearray(_certificate(_NOW, _NOW, issuer=4))
    for _ in range(data.draw(st.integers(1, 4))):
        der[data.draw(st.integers(0, len(der) - 1))] = data.draw(st.integers(0, 255))
    with suppress(ValueError):
        expires_s(_pem(bytes(der[: data.draw(st.integers(0, len(der)))])))
