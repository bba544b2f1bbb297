"""What a parser told, put together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from lmserve.text.parsing.parser import AnswerParser
from lmserve.types import CallArguments, CallBegun, Content, Part, Reasoning


@dataclass
class Said:
    """Runs of parts, in order: ("content" | "reasoning", text), or ("call", name, arguments)."""

    parts: list[tuple[str, ...]] = field(default_factory=list)

    def add(self, part: Part) -> None:
        match part:
            case CallBegun():
                assert part.index == sum(said[0] == "call" for said in self.parts)
                assert part.id.startswith("call_")
                self.parts.append(("call", part.name, ""))
            case CallArguments():
                assert part.text
                kind, name, before = self.parts[-1]  # nothing comes between
                assert kind == "call"
                self.parts[-1] = (kind, name, before + part.text)
            case Content() | Reasoning():
                assert part.text
                kind = type(part).__name__.lower()
                if self.parts and self.parts[-1][0] == kind:
                    self.parts[-1] = (kind, self.parts[-1][1] + part.text)
                else:
                    self.parts.append((kind, part.text))

    @property
    def content(self) -> str:
        return "".join(part[1] for part in self.parts if part[0] == "content")

    @property
    def reasoning(self) -> str:
        return "".join(part[1] for part in self.parts if part[0] == "reasoning")

    @property
    def calls(self) -> list[tuple[str, str]]:
        return [(part[1], part[2]) for part in self.parts if part[0] == "call"]


def said(parser: AnswerParser, pieces: Iterable[str]) -> Said:
    whole = Said()
    for piece in pieces:
        for part in parser.push(piece):
            whole.add(part)
    for part in parser.end():
        whole.add(part)
    assert parser.num_calls == len(whole.calls)
    return whole


def cut(text: str, places: Iterable[int]) -> list[str]:
    """The text in pieces, cut at these places."""
    at = sorted({place % (len(text) + 1) for place in places})
    return [text[a:b] for a, b in zip([0, *at], [*at, len(text)], strict=True)]
