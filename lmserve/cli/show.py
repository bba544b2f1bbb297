"""`lmserve config show`: each setting with its value and where it comes from."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from lmserve.cli.options import SettingsCommand, load_options, setting_options
from lmserve.fields import SECTIONS, SettingField, catalogue


@click.group()
def config() -> None:
    """Look at the settings."""


@config.command(cls=SettingsCommand)
@setting_options(*SECTIONS)
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def show(as_json: bool, **options: Any) -> None:
    """Print each setting, its value and its origin. Takes the flags of `serve` as well."""
    loaded = load_options(options)
    sections = asdict(loaded.settings)
    values = {
        field.name: _shown(field, sections[field.section][field.name])
        for field in catalogue().values()
    }
    if as_json:
        described = {
            name: {"value": value, "origin": loaded.origins[name]} for name, value in values.items()
        }
        click.echo(json.dumps(described, indent=2))
        return
    shown = {name: json.dumps(value) for name, value in values.items()}
    name_width, value_width = max(map(len, shown)), max(map(len, shown.values()))
    section = ""
    for field in catalogue().values():
        if field.section != section:
            section = field.section
            click.echo(f"[{section}]")
        name = field.name
        click.echo(f"{name:{name_width}}  {shown[name]:{value_width}}  {loaded.origins[name]}")


def _shown(field: SettingField, value: Any) -> Any:
    """The value, unless it is nobody's business."""
    return "(set)" if field.secret and value else value
