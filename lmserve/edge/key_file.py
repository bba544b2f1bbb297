"""The file of API keys: a table each, named after who holds the key.

    [alice]
    sha256 = "…"                # of the key: `lmserve keys new alice` makes both
    scopes = ["use"]            # and "metrics", and "admin", which may do everything
    requests_per_minute = 60    # max_requests, tokens_per_minute and weight, too
    expires = 2027-01-01

A key is 256 random bits, which nobody finds by trying: so its plain digest tells no more of it than
one of the slow kind, made for passwords, would, and costs a request nothing.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import stat
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from lmserve.atomic import write_atomic
from lmserve.errors import SetupError
from lmserve.fields import closest
from lmserve.types import KeyLimits

Scope = Literal["use", "metrics", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
MODE = 0o600

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,63}")
_NO_NAME = "is no name for a key: use up to 64 letters, digits and _ . @ + -"
_LIMITS = ("max_requests", "requests_per_minute", "tokens_per_minute")


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of an API key; the key itself is not."""

    name: str
    digest: bytes
    scopes: frozenset[Scope]
    limits: KeyLimits
    expires_s: float = math.inf  # by the wall clock

    @property
    def owner(self) -> str:
        """What its holder's sessions, files and answers are kept under."""
        return self.digest.hex()[:16]

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes or "admin" in self.scopes


def digest_of(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def read_keys(path: str | Path) -> list[Key]:
    """Raises SetupError: one line, with the place in the file and what to do."""
    return keys_in(_text_of(path), str(path))


def keys_in(text: str, path: str) -> list[Key]:
    """As `read_keys`, of what the file of this path has."""
    try:
        tables = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # the library lets some of Python's own through
        raise SetupError(f"{path}: not a TOML file: {error}") from None
    keys: dict[bytes, Key] = {}
    for name, table in tables.items():
        try:
            key = _key(name, table)
            alike = keys.setdefault(key.digest, key)
            if alike is not key:
                raise _Wrong(
                    f"is the key of [{alike.name}] too: give each one of its own", "sha256"
                )
        except _Wrong as wrong:
            line = _line_of(text, name, wrong.field)
            raise SetupError(f"{path} line {line}: [{name}] {wrong}") from None
    return list(keys.values())


def is_exposed(path: str | Path) -> bool:
    """Whether others of this machine may read or write it."""
    return bool(os.stat(path).st_mode & 0o077)


def entry(name: str, digest: bytes, values: dict[str, Any]) -> str:
    """A key's table, as it stands in the file. Raises SetupError for a value that may not."""
    if not NAME.fullmatch(name):  # it could end the table
        raise SetupError(f"{name!r} {_NO_NAME}")
    lines = [f"[{name}]" if re.fullmatch(r"[\w-]+", name, re.ASCII) else f'["{name}"]']
    lines.append(f'sha256 = "{digest.hex()}"')
    lines += [f"{field} = {_toml(value)}" for field, value in values.items()]
    text = "\n".join(lines) + "\n"
    try:
        _key(name, tomllib.loads(text)[name])
    except _Wrong as wrong:
        raise SetupError(f"{name}: {wrong}") from None
    return text


def append(path: str | Path, name: str, text: str) -> None:
    """Adds an entry to the file, which is made where there is none. Raises SetupError."""
    target = Path(os.path.realpath(path))
    before, mode, owner = "", MODE, None
    if target.exists():
        stat = target.stat()  # a server of another user reads it on
        before, mode, owner = _text_of(path), stat.st_mode & 0o777, (stat.st_uid, stat.st_gid)
    if any(key.name == name for key in keys_in(before, str(path))):
        raise SetupError(
            f"{path} has a key named {name}: choose another name, or take it out first"
        )
    gap = "" if not before else "\n" if before.endswith("\n") else "\n\n"
    write_atomic(target, f"{before}{gap}{text}".encode(), mode, owner)


def _text_of(path: str | Path) -> str:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for, and has it once
            raise SetupError(f"the key file {path} is no file: write the keys to one, and name it")
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        reason = (error.strerror or "cannot be read").lower()
        raise SetupError(
            f"the key file {path}: {reason}; `lmserve keys new NAME --key-file {path}` makes one"
        ) from None
    except UnicodeDecodeError:
        raise SetupError(f"{path}: not a TOML file: it is no UTF-8") from None


class _Wrong(ValueError):
    """What is wrong with a table, or with one field of it."""

    def __init__(self, problem: str, field: str | None = None):
        super().__init__(f"{field} {problem}" if field else problem)
        self.field = field


def _key(name: str, table: Any) -> Key:
    if not NAME.fullmatch(name):
        raise _Wrong(_NO_NAME)
    if not isinstance(table, dict):
        raise _Wrong("must be a table: write sha256 and the rest below it")
    for field, value in table.items():
        if field not in _FIELDS:
            raise _Wrong(f"is unknown{closest(field, _FIELDS).partition('; `')[0]}", field)
        fits, needed = _FIELDS[field]
        if not fits(value):
            raise _Wrong(f"must be {needed}", field)
    if "sha256" not in table:
        raise _Wrong("has no sha256: `lmserve keys new` makes a key and its entry")
    counts = {field: table.get(field) for field in _LIMITS}
    return Key(
        name,
        bytes.fromhex(table["sha256"]),
        frozenset(table.get("scopes", ["use"])),
        KeyLimits(**counts, weight=float(table.get("weight", 1.0))),
        _seconds(table["expires"]) if "expires" in table else math.inf,
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _are_scopes(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(each in SCOPES for each in value)


def _is_weight(value: Any) -> bool:
    return type(value) in (int, float) and 0.001 <= value <= 1000


_COUNT = (_is_count, "a whole number above 0")
_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "sha256": (
        lambda value: isinstance(value, str) and bool(re.fullmatch("[0-9a-fA-F]{64}", value)),
        "the key's SHA-256 in 64 hex digits",
    ),
    "scopes": (_are_scopes, 'a list of "use", "metrics" and "admin"'),
    **dict.fromkeys(_LIMITS, _COUNT),
    "weight": (_is_weight, "a number between 0.001 and 1000"),
    "expires": (lambda value: isinstance(value, date), "a date, or a date and time: 2027-01-31"),
}


def _seconds(expires: date) -> float:
    """Of a day, when it begins; without a time zone, in UTC."""
    if not isinstance(expires, datetime):
        expires = datetime(expires.year, expires.month, expires.day)
    return (expires if expires.tzinfo else expires.replace(tzinfo=UTC)).timestamp()


def _toml(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(f'"{each}"' for each in value) + "]"
    return value.isoformat() if isinstance(value, date) else str(value)


def _line_of(text: str, name: str, field: str | None) -> int:
    """Where a table begins, or its field stands: tomllib does not tell."""
    begun = 0
    for number, line in _lines(text):
        if begun and line.startswith("["):
            break
        if begun and field and re.match(rf'"?{re.escape(field)}"?\s*=', line):
            return number
        if not begun and re.match(rf"""\[?\s*["']?{re.escape(name)}["'\s.=\]]""", line):
            begun = number
    return begun or 1


def _lines(text: str) -> Iterator[tuple[int, str]]:
    return ((number, line.strip()) for number, line in enumerate(text.splitlines(), 1))
