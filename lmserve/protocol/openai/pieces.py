"""What an answer said, from which a chunk is made or the whole of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from lmserve.messages import TokenLogprob
from lmserve.types import CallArguments, CallBegun, Content, Reasoning, TextDelta


@dataclass(slots=True)
class Call:
    """Of a function, or what was added to it."""

    begun: CallBegun | None = None
    arguments: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Pieces:
    """Of one answer, since it was last told."""

    content: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: dict[int, Call] = field(default_factory=dict)  # by their index
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)

    def add(self, delta: TextDelta) -> None:
        self.token_ids += delta.token_ids
        if delta.logprobs is not None:
            self.logprobs += delta.logprobs
        if delta.parts is None:
            if delta.text:
                self.content.append(delta.text)
            return
        for part in delta.parts:
            match part:
                case Content(text):
                    self.content.append(text)
                case Reasoning(text):
                    self.reasoning.append(text)
                case CallBegun(index):
                    self._call(index).begun = part
                case CallArguments(index, text):
                    self._call(index).arguments.append(text)

    @property
    def text(self) -> str:
        return "".join(self.content)

    @property
    def thought(self) -> str:
        return "".join(self.reasoning)

    @property
    def says(self) -> bool:
        """There is something for the user in it."""
        return bool(self.content or self.reasoning or self.calls)

    def _call(self, index: int) -> Call:
        return self.calls.setdefault(index, Call())
