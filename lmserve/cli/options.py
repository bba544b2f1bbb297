"""The flags of a command, made from the catalogue of settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from lmserve.cli.config import Loaded, load
from lmserve.cli.lists import ListOption, ListsCommand
from lmserve.fields import SettingField, catalogue

Function = TypeVar("Function", bound=Callable[..., Any])

TITLES = {
    "server": "Server",
    "access": "Access",
    "limits": "Limits",
    "engine": "Engine",
    "sessions": "Conversations",
    "streams": "Streams",
    "warm": "Conversations kept warm",
    "batches": "Files and batches",
    "log": "Log",
}


class SettingsCommand(ListsCommand):
    """Its help has a group for each section of the settings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is not None:
                groups.setdefault(self.title_of(param), []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)

    def title_of(self, param: click.Parameter) -> str:
        field = catalogue().get(param.name or "")
        return TITLES[field.section] if field and field.name != "model" else "Options"


def setting_options(*sections: str) -> Callable[[Function], Function]:
    """Adds `--config` and a flag for every setting of these sections, but `model`."""

    def decorate(function: Function) -> Function:
        for field in reversed(catalogue().values()):
            if field.section in sections and field.name != "model":
                function = _option(field)(function)
        config = click.option(
            "--config", metavar="FILE", help="settings file (TOML); also $LMSERVE_CONFIG"
        )
        return config(function)

    return decorate


def _option(field: SettingField) -> Callable[[Function], Function]:
    text = field.doc
    if field.default not in (None, ()):
        shown = _shown(field.default)
        text += f"  [default: {shown}]"
    if field.type is bool:
        spelling = f"{field.flag}/--no-{field.name.replace('_', '-')}"
        return click.option(spelling, field.name, default=None, help=text)
    # The text is parsed by the catalogue: the same checks and words for every source.
    metavar = "|".join(field.choices) if field.choices else field.type.__name__.upper()
    if field.type is tuple:
        return click.option(
            field.flag, field.name, cls=ListOption, default=None, metavar="TEXT...", help=text
        )
    return click.option(field.flag, field.name, default=None, metavar=metavar, help=text)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def sampling_options(function: Function) -> Function:
    """The flags of a command that answers; `GenerateRequest` has the same names."""
    options = (
        click.option("--system", metavar="TEXT", help="what the model is told first"),
        click.option("--max-tokens", type=int, help="longest answer, in tokens"),
        click.option("--temperature", type=float, help="0 is greedy; default: the model's own"),
        click.option("--top-p", type=float, help="choose among the likeliest, up to this share"),
        click.option("--top-k", type=int, help="choose among this many; 0 is all"),
        click.option("--seed", type=int, help="the same seed gives the same answer"),
    )
    for option in reversed(options):
        function = option(function)
    return function


def load_options(options: dict[str, Any], model: str | None = None) -> Loaded:
    """Settings from what click parsed: takes the settings' flags out of `options`."""
    config = options.pop("config", None)
    flags = {name: options.pop(name) for name in list(options) if name in catalogue()}
    flags = {name: value for name, value in flags.items() if value is not None}
    if model is not None:
        flags["model"] = model
    return load(flags, config=config)
