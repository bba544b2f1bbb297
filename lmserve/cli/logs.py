"""Logs go to stderr; stdout belongs to answers."""

from __future__ import annotations

from lmserve import logs
from lmserve.cli.config import Loaded


def set_up_logging(loaded: Loaded, *, quiet: bool = False) -> None:
    """`quiet`: where nobody asked for a level, warnings and errors only."""
    settings = loaded.settings.log
    level = settings.log_level
    if quiet and loaded.origins["log_level"] == "default":
        level = "warning"
    logs.set_up(level.upper(), logs.JSON if settings.log_format == "json" else logs.TEXT)
