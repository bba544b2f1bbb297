"""How lines are logged, in server and engine alike: for people, or one JSON object a line.

A line is made where it is logged, so that it tells the request it is about, and written by a
thread: whoever reads stderr slowly, or not at all, holds up nobody. What there is no room for is
counted, and told once there is.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from collections import deque
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

import orjson

TEXT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
JSON = "json"  # the other form

# less half characters, which the handler escapes
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")

MAX_LINES = 10_000  # that wait to be written
FLUSH_S = 2.0  # at the end of the process, they get this long

# Of the request that is being handled; "" where none is.
REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")


class JsonFormatter(logging.Formatter):
    """`extra={"fields": {…}}` adds fields to a line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := REQUEST_ID.get():
            line["request_id"] = request_id
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        try:
            return orjson.dumps(line, default=str).decode()
        except (TypeError, ValueError):  # half a character
            return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """One line a message, whatever was named by others in it; a traceback keeps its own lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return _visible(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        return "\n".join(map(_visible, super().formatException(ei).split("\n")))


def _visible(text: str) -> str:
    """Line breaks and what moves a terminal's cursor as escapes."""
    if text.isprintable():
        return text
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


class BackgroundHandler(logging.Handler):
    """Writes to a file descriptor, in a thread that begins with the first line."""

    def __init__(self, fd: int = 2):
        super().__init__()
        self._fd = fd
        self._lines: deque[str] = deque()
        self._num_lost = 0
        self._changed = threading.Condition()
        self._num_writing = 0
        self._thread: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:
            self.handleError(record)
            return
        with self._changed:
            if len(self._lines) >= MAX_LINES:
                self._num_lost += 1
                return
            self._lines.append(line)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="logs", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self) -> None:
        """Waits until all is written, but not for ever: whoever should read may not."""
        until = time.monotonic() + FLUSH_S
        with self._changed:
            while self._lines or self._num_writing:
                if not self._changed.wait(until - time.monotonic()):
                    return

    def _run(self) -> None:
        while True:
            with self._changed:
                self._num_writing = 0
                self._changed.notify_all()
                while not self._lines:
                    self._changed.wait()
                lines, num_lost = list(self._lines), self._num_lost
                self._lines.clear()
                self._num_writing, self._num_lost = len(lines), 0
            if num_lost:
                lines.append(self._lost(num_lost))
            self._write("\n".join([*lines, ""]).encode(errors="backslashreplace"))

    def _write(self, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError:
            pass  # a full disk, or nobody reads any more: there is nobody to tell

    def _lost(self, num: int) -> str:
        text = f"{num} lines were not logged: whoever reads them is too slow"
        return self.format(logging.LogRecord(__name__, logging.WARNING, "", 0, text, (), None))


def formatter_of(form: str, date_format: str | None = None) -> logging.Formatter:
    """`form` is JSON, or a format of `logging`."""
    return JsonFormatter() if form == JSON else TextFormatter(form, date_format)


def form_of(formatter: logging.Formatter | None) -> str:
    """The inverse; `TEXT` where it cannot be told."""
    if isinstance(formatter, JsonFormatter):
        return JSON
    return (formatter and formatter._fmt) or TEXT


def set_up(level: int | str, form: str = TEXT, date_format: str | None = None) -> None:
    """Once a process; a root logger that has handlers keeps them."""
    handler = BackgroundHandler()
    handler.setFormatter(formatter_of(form, date_format))
    logging.basicConfig(level=level, handlers=[handler])
