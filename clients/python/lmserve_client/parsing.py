"""Bytes of a streamed answer in, JSON objects out, wherever the network cut them.

Reads both framings of these servers: JSON lines, and server-sent events of one line each. Lines
end at `\\n` alone: other libraries' line readers also cut at U+2028 and such within the text.
"""

from __future__ import annotations

import json
from typing import Any

from lmserve_client.errors import APIResponseError
from lmserve_client.types import JSONObject

DONE = b"[DONE]"


class LineSplitter:
    """Cuts lines out of pieces."""

    def __init__(self) -> None:
        self._begun: list[bytes] = []  # pieces of a line that has not ended

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that end in these bytes, without their ends."""
        *ended, rest = data.split(b"\n")
        if ended:
            ended[0] = b"".join([*self._begun, ended[0]])
            self._begun = []
        if rest:
            self._begun.append(rest)
        return ended

    def end(self) -> list[bytes]:
        """The last line, where it came without an end."""
        rest, self._begun = b"".join(self._begun), []
        return [rest] if rest else []


class AnswerParser:
    """Of one response."""

    def __init__(self) -> None:
        self._lines = LineSplitter()

    def feed(self, data: bytes) -> list[JSONObject]:
        return _objects(self._lines.feed(data))

    def end(self) -> list[JSONObject]:
        """What is left when the response ends."""
        return _objects(self._lines.end())


def _objects(lines: list[bytes]) -> list[JSONObject]:
    contents = map(_content, lines)
    return [parse_object(content) for content in contents if content and content != DONE]


def _content(line: bytes) -> bytes:
    """What a line says; nothing for those that only frame."""
    line = line.strip()
    if line.startswith(b"data:"):
        return line[5:].strip()
    if line.startswith((b":", b"event:", b"id:", b"retry:")):
        return b""
    return line


def parse_object(content: bytes) -> JSONObject:
    try:
        value: Any = json.loads(content)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        said = content[:200].decode(errors="replace")
        raise APIResponseError(f"the server answered what is no JSON object: {said!r}")
    return value
