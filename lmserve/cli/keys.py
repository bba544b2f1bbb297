"""`lmserve keys`: a file of API keys, which holds their digests and what each may do."""

from __future__ import annotations

import math
import secrets
import time
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from lmserve.errors import SetupError

if TYPE_CHECKING:
    from lmserve.edge.key_file import Key

SCOPES = ("use", "metrics", "admin")

key_file = click.option(
    "--key-file", metavar="FILE", help="the file; default: the one of the settings"
)
config = click.option("--config", metavar="FILE", help="settings file (TOML)")


@click.group()
def keys() -> None:
    """Make and look at API keys."""


@keys.command()
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(SCOPES),
    help="what it may do; admin: everything. Default: use",
)
@click.option("--max-requests", type=int, help="waiting or running at once")
@click.option("--requests-per-minute", type=int, help="on every route that runs something")
@click.option("--tokens-per-minute", type=int, help="of prompts and answers")
@click.option("--weight", type=float, help="its share of the engine beside others'; default: 1")
@click.option("--expires", metavar="DATE|DAYS", help="2027-01-31, or in how many days: 90")
@key_file
@config
def new(
    name: str,
    scopes: tuple[str, ...],
    expires: str | None,
    key_file: str | None,
    config: str | None,
    **limits: Any,
) -> None:
    """Make a key for NAME and add its entry to the file.

    The key is printed once, alone on stdout, and kept nowhere.
    """
    from lmserve.edge import key_file as files

    path = _path(key_file, config)
    values = {"scopes": scopes or ("use",)}
    values |= {field: value for field, value in limits.items() if value is not None}
    if expires is not None:
        values["expires"] = _day(expires)
    key = "sk-" + secrets.token_urlsafe(32)
    entry = files.entry(name, files.digest_of(key), values)
    if path is not None:
        files.append(path, name, entry)
    click.echo(key)
    click.echo(f"\nThis is the key of {name}: it is shown this once. ", err=True, nl=False)
    if path is not None:
        click.echo(f"{path} has its entry, which a running server has within seconds.", err=True)
    else:
        click.echo("Start the server with --key-file FILE, which has:\n", err=True)
        click.echo(entry, err=True, nl=False)


@keys.command("list")
@key_file
@config
def list_(key_file: str | None, config: str | None) -> None:
    """Print whose keys the file has, and what each may do."""
    from lmserve.edge.key_file import read_keys

    rows: list[tuple[str, ...]] = [
        ("name", "may", "at once", "requests a minute", "tokens a minute", "weight", "expires")
    ]
    rows += [_row(key) for key in read_keys(_needed(key_file, config))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (f"{cell:{width}}" for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


@keys.command()
@key_file
@config
def check(key_file: str | None, config: str | None) -> None:
    """Say whether a server would take the file, and what to mind."""
    from lmserve.edge.key_file import is_exposed, read_keys

    path = _needed(key_file, config)
    found = read_keys(path)
    num_admins = sum(key.may("admin") for key in found)
    click.echo(f"{path}: {_count(len(found), 'key')}, {num_admins} of them for administration")
    if not found:
        click.echo("warning: without a key in it nobody gets in", err=True)
    if is_exposed(path):
        click.echo(f"warning: others of this machine can read it: chmod 600 {path}", err=True)
    for key in found:
        if key.expires_s <= time.time():
            click.echo(f"warning: the key of {key.name} has expired", err=True)


def _path(key_file: str | None, config: str | None) -> str | None:
    from lmserve.cli.config import load

    return load({"key_file": key_file} if key_file else {}, config=config).settings.access.key_file


def _needed(key_file: str | None, config: str | None) -> str:
    path = _path(key_file, config)
    if path is None:
        raise SetupError("no key file is set: give --key-file FILE, or set $LMSERVE_KEY_FILE")
    return path


def _day(text: str) -> Any:
    """A date, or a moment so many days from now."""
    if text.isdecimal() and 0 < int(text) <= 36_500:
        return (datetime.now(UTC) + timedelta(days=int(text))).replace(microsecond=0)
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise SetupError(
            f"--expires {text}: give a date, 2027-01-31, or a number of days"
        ) from None


def _row(key: Key) -> tuple[str, ...]:
    limits = key.limits
    counts = (limits.max_requests, limits.requests_per_minute, limits.tokens_per_minute)
    expires = "never"
    if key.expires_s < math.inf:
        expires = f"{datetime.fromtimestamp(key.expires_s, UTC):%Y-%m-%d %H:%M} UTC"
        if key.expires_s <= time.time():
            expires += " (expired)"
    scopes = " ".join(scope for scope in SCOPES if scope in key.scopes)
    return (key.name, scopes, *map(_shown, counts), f"{limits.weight:g}", expires)


def _shown(count: int | None) -> str:
    return "-" if count is None else f"{count:,}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
