"""Logs go to stderr; stdout belongs to answers, and to what a server tells who started it."""

from __future__ import annotations

import logging
from collections.abc import Callable

import click

from lmserve import logs
from lmserve.cli.config import Loaded


def set_up_logging(loaded: Loaded, *, quiet: bool = False) -> None:
    """`quiet`: where nobody asked for a level, warnings and errors only."""
    settings = loaded.settings.log
    level = settings.log_level
    if quiet and loaded.origins["log_level"] == "default":
        level = "warning"
    logs.set_up(level.upper(), logs.JSON if settings.log_format == "json" else logs.TEXT)


def announcer(log_format: str) -> Callable[[str], None]:
    """Tells it on stdout, whatever the level of the log. In a container or a journal that is the
    same stream: where its lines are JSON, these are too, less what only a person needs."""
    if log_format != "json":
        return click.echo
    formatter = logs.JsonFormatter()

    def tell(text: str) -> None:
        first = text.partition("\n")[0]
        record = logging.LogRecord("lmserve", logging.INFO, "", 0, first, (), None)
        click.echo(formatter.format(record))

    return tell
