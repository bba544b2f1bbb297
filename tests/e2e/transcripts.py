"""Transcripts of a WebSocket in a page of the docs, read so that they can be played again.

In a block of code: `→ {…}` is sent, `← {…}` comes, lines that follow indented belong to it, `…` by
itself stands for frames that are left out, `# …` says what happened meanwhile. In a frame `…`
stands for more fields, `[…]` for a list, and `"resp_…5f0c"` for a longer id.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MORE = "…"
SENT, CAME, LEFT_OUT, HAPPENED = "→", "←", MORE, "#"

_BLOCK = re.compile(r"^```\w*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_STRING_OR_MORE = re.compile(rf'"(?:[^"\\]|\\.)*"|\[{MORE}\]|{MORE}')
_ID = re.compile(r"(resp|sess|strm|steer|msg|call)_[\w…]+")
EXACT = {"type", "object", "status", "code", "reason", "role", "param", "stream_id", "event_id"}


@dataclass(frozen=True, slots=True)
class Step:
    kind: str
    text: str = ""
    frame: Any = None


def steps(page: Path) -> Iterator[Step]:
    """Of all transcripts in the page, in order."""
    for block in _BLOCK.findall(page.read_text()):
        if not re.match(f"[{SENT}{CAME}#] ", block):
            continue
        for line in re.sub(r"\n +", " ", block).splitlines():
            kind, text = line[0], line[1:].strip()
            yield Step(kind, text, frame(text) if kind in (SENT, CAME) else None)


def frame(text: str) -> Any:
    def written_out(found: re.Match[str]) -> str:
        if found[0].startswith('"'):
            return found[0]
        return f'["{MORE}"]' if found[0].startswith("[") else f'"{MORE}": 0'

    return json.loads(_STRING_OR_MORE.sub(written_out, text))


class Ids:
    """What the ids of the page are called this time."""

    def __init__(self) -> None:
        self._now: dict[str, str] = {}

    def translate(self, value: Any) -> Any:
        """A documented frame, with the ids of now."""
        if isinstance(value, dict):
            return {name: self.translate(item) for name, item in value.items()}
        if isinstance(value, list):
            return [self.translate(item) for item in value]
        return self._now.get(value, value) if isinstance(value, str) else value

    def compare(self, documented: Any, found: Any, where: str) -> None:
        """The fields and the types are the same; so are the values of `EXACT`."""
        if isinstance(documented, dict) and isinstance(found, dict):
            names = documented.keys() - {MORE}
            missing, new = names - found.keys(), found.keys() - names
            assert not missing, f"{where} has no {missing} any more: {found}"
            assert MORE in documented or not new, f"{where} has {new}, too"
            for name in names:
                self.compare(documented[name], found[name], f"{where}.{name}")
        elif documented == [MORE]:
            assert found and isinstance(found, list), where
        elif isinstance(documented, list) and isinstance(found, list):
            assert len(documented) == len(found), f"{where}: {found}"
            for index, (one, other) in enumerate(zip(documented, found, strict=True)):
                self.compare(one, other, f"{where}[{index}]")
        elif isinstance(documented, str) and _ID.fullmatch(documented):
            self._bind(documented, found, where)
        elif where.rpartition(".")[2] in EXACT:
            assert documented == found, f"{where}: {documented!r} is {found!r} now"
        else:
            one, other = _kind(documented), _kind(found)
            assert one == other, f"{where}: {documented!r} is {found!r} now"

    def _bind(self, documented: str, found: Any, where: str) -> None:
        prefix = documented.partition("_")[0] + "_"
        assert isinstance(found, str) and found.startswith(prefix), f"{where}: {found!r}"
        known = self._now.setdefault(documented, found)
        assert known == found, f"{where}: {documented} was {known} before"


def _kind(value: Any) -> type:
    return float if isinstance(value, int) and not isinstance(value, bool) else type(value)
