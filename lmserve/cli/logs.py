"""Logs go to stderr; stdout belongs to answers."""

from __future__ import annotations

import logging

from lmserve.cli.config import Loaded

FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


def set_up_logging(loaded: Loaded, *, quiet: bool = False) -> None:
    """`quiet`: where nobody asked for a level, warnings and errors only."""
    level = loaded.settings.log.log_level
    if quiet and loaded.origins["log_level"] == "default":
        level = "warning"
    logging.basicConfig(level=level.upper(), format=FORMAT)
