"""Where settings come from: defaults < file < environment < flags.

Every value remembers its origin, and a wrong one is refused with it. Nothing else in lmserve
reads files or the environment for settings.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmserve.errors import SettingsError
from lmserve.fields import SECTIONS, WrongValue, catalogue, closest
from lmserve.settings import Settings

CONFIG_ENV = "LMSERVE_CONFIG"


@dataclass(frozen=True, slots=True)
class Loaded:
    settings: Settings
    origins: dict[str, str]  # field name -> "default", "file …", "environment …" or "flag …"


def load(
    flags: Mapping[str, str | bool] | None = None,
    *,
    config: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> Loaded:
    """Merges all sources. `flags` holds only what was given, by field name."""
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {name: field.default for name, field in catalogue().items()}
    origins = dict.fromkeys(values, "default")
    path = config or environ.get(CONFIG_ENV)
    sources = [_from_file(path)] if path else []
    sources += [_from_environment(environ), _from_flags(flags or {})]
    for source in sources:
        for name, value, origin in source:
            values[name] = value
            origins[name] = origin
    return Loaded(_assemble(values), origins)


def _assemble(values: Mapping[str, Any]) -> Settings:
    fields = catalogue().values()
    return Settings(
        **{
            section: owner(**{f.name: values[f.name] for f in fields if f.section == section})
            for section, owner in SECTIONS.items()
        }
    )


# --- sources: each yields (field name, value, origin) ---------------------------------------

Entry = tuple[str, Any, str]


def _from_file(path: str) -> Iterator[Entry]:
    for section, table in _read_toml(path).items():
        if section not in SECTIONS:
            raise SettingsError(f"{path}: [{section}] is unknown{closest(section, SECTIONS)}")
        if not isinstance(table, dict):
            raise SettingsError(f"{path}: {section} must be a table, [{section}]")
        for name, value in table.items():
            _refuse_unknown_key(path, section, name)
            place = f"{path}: [{section}] {name}"
            try:
                yield name, catalogue()[name].check(value), f"file {path}"
            except WrongValue as error:
                raise SettingsError(f"{place} {error}") from None


def _refuse_unknown_key(path: str, section: str, name: str) -> None:
    field = catalogue().get(name)
    if field is None:
        names = [known.name for known in catalogue().values() if known.section == section]
        raise SettingsError(f"{path}: [{section}] {name} is unknown{closest(name, names)}")
    if field.section != section:
        raise SettingsError(f"{path}: {name} belongs in [{field.section}], not in [{section}]")


def _read_toml(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot read the settings file: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not a TOML file: {error}") from None


def _from_environment(environ: Mapping[str, str]) -> Iterator[Entry]:
    fields = {field.env: field for field in catalogue().values()}
    for env, text in environ.items():
        if not env.startswith("LMSERVE_") or env == CONFIG_ENV:
            continue
        if env not in fields:
            raise SettingsError(f"{env} in the environment is unknown{closest(env, fields)}")
        if not text:  # `LMSERVE_DTYPE= lmserve …` takes the variable back
            continue
        try:
            yield fields[env].name, fields[env].parse(text), f"environment {env}"
        except WrongValue as error:
            raise SettingsError(f"{env} in the environment {error}") from None


def _from_flags(flags: Mapping[str, str | bool]) -> Iterator[Entry]:
    for name, value in flags.items():
        field = catalogue()[name]
        spelling = "MODEL" if name == "model" else field.flag
        try:
            parsed = field.check(value) if isinstance(value, bool) else field.parse(value)
        except WrongValue as error:
            raise SettingsError(f"{spelling} {error}") from None
        yield name, parsed, f"flag {spelling}"
