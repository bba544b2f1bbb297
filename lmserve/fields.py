"""The catalogue of settings: every field of `lmserve.settings` with its names, type and limits.

One catalogue serves the file, the environment, the flags and the documentation, so that a field
is written once, in `lmserve.settings`.
"""

from __future__ import annotations

import difflib
import math
import re
import types
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lmserve.settings import (
    AccessSettings,
    BatchSettings,
    EngineSettings,
    LimitSettings,
    LogSettings,
    ServerSettings,
    SessionSettings,
    StreamSettings,
    WarmSettings,
)

SECTIONS: dict[str, type] = {
    "server": ServerSettings,
    "access": AccessSettings,
    "limits": LimitSettings,
    "engine": EngineSettings,
    "sessions": SessionSettings,
    "streams": StreamSettings,
    "warm": WarmSettings,
    "batches": BatchSettings,
    "log": LogSettings,
}
TRUE, FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")


class WrongValue(ValueError):
    """A value does not fit its field; the message, "must be …", says what does."""


@dataclass(frozen=True, slots=True)
class SettingField:
    section: str
    name: str
    type: type  # str, int, float, bool, or tuple for a list of texts
    choices: tuple[str, ...]  # allowed texts; empty: any
    default: Any
    doc: str
    least: float | None
    most: float | None
    above: float | None
    pattern: str | None
    form: str
    secret: bool

    @property
    def env(self) -> str:
        return "LMSERVE_" + self.name.upper()

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    def parse(self, text: str) -> Any:
        """The value that `text`, from a flag or the environment, stands for. Items of a list are
        separated by commas or blanks."""
        if self.type is bool:
            return self.check(_parse_bool(text))
        if self.type is tuple:
            return self.check(tuple(re.split(r"[,\s]+", text.strip(", \t\n"))))
        try:
            return self.check(self.type(text))
        except WrongValue:
            raise
        except ValueError:
            raise WrongValue(self._refusal(text)) from None

    def check(self, value: Any) -> Any:
        """The value itself, checked for type and range. A whole number passes for a float."""
        if self.type is float and type(value) is int:
            value = float(value)
        if self.type is tuple and isinstance(value, list):
            value = tuple(value)
        if type(value) is not self.type or not self._in_range(value):
            raise WrongValue(self._refusal(value))
        return value

    def _in_range(self, value: Any) -> bool:
        if isinstance(value, tuple):
            return all(isinstance(item, str) and self._in_range(item) for item in value)
        if isinstance(value, str):
            return (not self.choices or value in self.choices) and (
                self.pattern is None or re.fullmatch(self.pattern, value) is not None
            )
        return not (
            not math.isfinite(value)
            or (self.least is not None and value < self.least)
            or (self.most is not None and value > self.most)
            or (self.above is not None and value <= self.above)
        )

    def _refusal(self, value: Any) -> str:
        return f"must be {self.accepts}" + ("" if self.secret else f", not {value!r}")

    @property
    def accepts(self) -> str:
        """What fits, in words."""
        if self.type is bool:
            return "true or false"
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if self.type is str:
            return self.form
        if self.type is tuple:
            return f"a list, each {self.form}"
        limits = (("above", self.above), ("at least", self.least), ("at most", self.most))
        words = [f"{word} {limit}" for word, limit in limits if limit is not None]
        number = "a whole number" if self.type is int else "a number"
        return f"{number} {' and '.join(words)}".strip()


def _parse_bool(text: str) -> bool | str:
    lowered = text.strip().lower()
    return True if lowered in TRUE else False if lowered in FALSE else text


@cache
def catalogue() -> dict[str, SettingField]:
    """Every setting by name, in the order of the documentation."""
    found: dict[str, SettingField] = {}
    for section, owner in SECTIONS.items():
        hints = get_type_hints(owner)
        for item in fields(owner):
            assert item.name not in found, f"two settings are named {item.name}"
            kind, choices = _kind(hints[item.name])
            found[item.name] = SettingField(
                section, item.name, kind, choices, item.default, **item.metadata
            )
    return found


def _kind(hint: Any) -> tuple[type, tuple[str, ...]]:
    """`int | None` is (int, ()); `Literal["a", "b"]` is (str, ("a", "b")); `tuple[str, ...]` is
    (tuple, ())."""
    if get_origin(hint) is types.UnionType:
        (hint,) = (arg for arg in get_args(hint) if arg is not type(None))
    if get_origin(hint) is Literal:
        return str, get_args(hint)
    return get_origin(hint) or hint, ()


def closest(name: str, known: Iterable[str]) -> str:
    """What may have been meant, to end a refusal with."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {matches[0]}?" if matches else "; `lmserve config show` lists all"
