"""The file that a batch reads: checked whole, then read a line at a time. Not for the loop."""

from __future__ import annotations

from array import array
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec
from msgspec import Raw, Struct

from lmserve.service.batches.records import LineError

MAX_LINES = 50_000
MAX_ERRORS = 100  # told of one file
MAX_CUSTOM_ID_CHARS = 512


class Line(Struct):
    """One request."""

    custom_id: str
    method: str
    url: str
    body: Raw  # an object, as far as its first character says


@dataclass(frozen=True, slots=True)
class Scan:
    num_lines: int  # of requests
    pending: array[int]  # where those begin that are not done
    errors: list[LineError]


class Lines:
    """The input of one batch."""

    def __init__(self, path: Path, endpoint: str, max_line_bytes: int):
        self._path = path
        self._endpoint = endpoint
        self._max_line_bytes = max_line_bytes

    def scan(self, done: Container[str] = ()) -> Scan:
        """Looks at every line."""
        seen: set[str] = set()
        pending: array[int] = array("q")
        errors: list[LineError] = []
        with open(self._path, "rb") as file:
            start, number = 0, 0
            while (text := self._next(file)) and len(errors) < MAX_ERRORS:
                number += 1
                if text.strip():
                    found = self._checked(text, number, seen)
                    if isinstance(found, LineError):
                        errors.append(found)
                    elif len(seen) > MAX_LINES:
                        errors.append(
                            _error("too_many_lines", f"there are over {MAX_LINES} requests: split")
                        )
                        break
                    elif found.custom_id not in done:
                        pending.append(start)
                start = file.tell()
        if not seen and not errors:
            errors.append(_error("empty_file", "the file has no requests: give one a line"))
        return Scan(len(seen), pending, errors)

    def read(self, start: int) -> Line:
        """The line that begins there."""
        with open(self._path, "rb") as file:
            file.seek(start)
            return msgspec.json.decode(file.readline(), type=Line)

    def _next(self, file: IO[bytes]) -> bytes:
        """Of one that is too long so much that it shows; the rest is passed over."""
        text = file.readline(self._max_line_bytes + 2)
        part = text
        while part and not part.endswith(b"\n"):
            part = file.readline(self._max_line_bytes)
        return text

    def _checked(self, text: bytes, number: int, seen: set[str]) -> Line | LineError:
        if len(text.rstrip(b"\r\n")) > self._max_line_bytes:
            message = f"the line is over {self._max_line_bytes} bytes (max_body_bytes): send less"
            return _error("line_too_long", message, number)
        try:
            line = msgspec.json.decode(text, type=Line)
        except msgspec.ValidationError as error:
            return _error("invalid_line", f"the line is not a request: {error}", number)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return _error("invalid_json_line", f"the line is not valid JSON: {error}", number)
        except RecursionError:
            return _error("invalid_json_line", "the line is nested too deep", number)
        if not 1 <= len(line.custom_id) <= MAX_CUSTOM_ID_CHARS:
            message = f"custom_id must have 1 to {MAX_CUSTOM_ID_CHARS} characters"
            return _error("invalid_custom_id", message, number, "custom_id")
        if line.custom_id in seen:
            message = f"custom_id {line.custom_id[:64]!r} was that of a line before"
            return _error("duplicate_custom_id", message, number, "custom_id")
        if line.method != "POST":
            return _error("invalid_method", "method must be POST", number, "method")
        if line.url != self._endpoint:
            message = f"url is {line.url[:64]!r}: it must be the batch's, {self._endpoint}"
            return _error("invalid_url", message, number, "url")
        if not bytes(line.body).lstrip().startswith(b"{"):
            return _error("invalid_body", "body must be a JSON object", number, "body")
        seen.add(line.custom_id)
        return line


def _error(code: str, message: str, line: int | None = None, param: str | None = None) -> LineError:
    return LineError(code=code, message=message, line=line, param=param)
