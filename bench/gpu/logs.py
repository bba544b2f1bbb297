"""What a part of lmserve logs meanwhile."""

from __future__ import annotations

import logging


class Said(logging.Handler):
    """In a `with` block."""

    def __init__(self, logger: str, level: int):
        super().__init__(level)
        self._logger = logging.getLogger(logger)
        self._said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._said.append(record.getMessage())

    def lines(self, part: str) -> list[str]:
        """Those with these words."""
        return [line for line in self._said if part in line]

    def __enter__(self) -> Said:
        self._level = self._logger.level
        self._logger.setLevel(self.level)
        self._logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self)
        self._logger.setLevel(self._level)
