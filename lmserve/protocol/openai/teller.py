"""Answers told with more than their text: several of them, parts, log probabilities, token ids,
usage in every chunk. One choice's chunks and the whole of it are made of the same pieces."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

from msgspec import UNSET, Struct, UnsetType

from lmserve.messages import TokenLogprob
from lmserve.protocol.encode import Head
from lmserve.protocol.logprobs import PromptLogprobs, Vocabulary, prompt_logprobs
from lmserve.protocol.openai.pieces import Pieces
from lmserve.protocol.openai.plain import Extras
from lmserve.protocol.usage import PromptProgressInfo, Timed, TimingsInfo, UsageInfo
from lmserve.types import Done, TextDelta, Usage


class Source(Protocol):
    """Where an answer comes from: a generation."""

    @property
    def usage(self) -> Usage: ...
    @property
    def timings(self) -> Timed: ...
    @property
    def prompt_ids(self) -> Sequence[int]: ...
    @property
    def prompt_logprobs(self) -> Sequence[TokenLogprob]: ...
    @property
    def unshown_ids(self) -> list[int]: ...
    @property
    def end_id(self) -> int | None: ...  # the end token, which has no text
    @property
    def end_logprob(self) -> TokenLogprob | None: ...


class Teller(ABC):
    """Tells one choice, in chunks or whole. Its subclasses know the words."""

    def __init__(
        self, head: Head, index: int, source: Source, extras: Extras, vocabulary: Vocabulary
    ):
        self.head = head
        self.index = index
        self.source = source
        self.extras = extras
        self.vocabulary = vocabulary
        self._pieces = Pieces()  # not told yet
        self._begun = False

    # --- in chunks --------------------------------------------------------------------

    def delta(self, delta: TextDelta) -> bytes:
        """The chunks that are due; b"" where none is."""
        told = b""
        if delta.progress is not None and self.extras.progress:
            told = self._chunk(
                self._silence(), prompt_progress=PromptProgressInfo.of(delta.progress)
            )
        self._pieces.add(delta)
        return told + self._flush() if self._is_due else told

    def final(self, done: Done) -> bytes:
        """What is left, and how it ended."""
        left = self._flush() if self._pieces.says else b""
        self._end()
        begin = b"" if self._begun else self._begin()
        self._begun = True
        return left + begin + self._chunk(self._said(done), timings=self.timings)

    def begun(self) -> None:
        """Somebody else tells its beginning."""
        self._begun = True

    # --- whole ------------------------------------------------------------------------

    def add(self, delta: TextDelta) -> None:
        """More of what is told later."""
        self._pieces.add(delta)

    @abstractmethod
    def choice(self, done: Done) -> Struct:
        """All of it."""

    # --- a subclass's -----------------------------------------------------------------

    @abstractmethod
    def _begin(self) -> bytes:
        """What comes before the first chunk."""

    @abstractmethod
    def _said(self, done: Done | None = None) -> Struct:
        """A chunk's choice, of the pieces; with the end, where it is there."""

    @abstractmethod
    def _silence(self) -> Struct:
        """A chunk's choice that says nothing."""

    @abstractmethod
    def _chunk(self, choice: Struct, **others: Any) -> bytes:
        """An event."""

    # --- own --------------------------------------------------------------------------

    @property
    def _is_due(self) -> bool:
        pieces, extras = self._pieces, self.extras
        if not (pieces.says or ((extras.logprobs or extras.token_ids) and pieces.token_ids)):
            return False
        # what the end releases may have no token of its own
        return not self._begun or max(1, len(pieces.token_ids)) >= extras.interval

    def _flush(self) -> bytes:
        begin = b"" if self._begun else self._begin()
        self._begun = True
        chunk = self._chunk(self._said())
        self._pieces = Pieces()
        return begin + chunk

    def _end(self) -> None:
        """The tokens without text, too."""
        source, pieces = self.source, self._pieces
        pieces.token_ids += source.unshown_ids
        if source.end_id is not None:
            pieces.token_ids.append(source.end_id)
        if source.end_logprob is not None:
            pieces.logprobs.append(source.end_logprob)

    # --- what is told where it was asked for ------------------------------------------

    @property
    def timings(self) -> TimingsInfo | UnsetType:
        source = self.source
        return TimingsInfo.of(source.timings, source.usage) if self.extras.timings else UNSET

    @property
    def prompt_token_ids(self) -> list[int] | UnsetType:
        return list(self.source.prompt_ids) if self.extras.token_ids else UNSET

    @property
    def prompt_logprobs(self) -> PromptLogprobs | UnsetType:
        if not self.extras.prompt_logprobs:
            return UNSET
        return prompt_logprobs(self.source.prompt_logprobs, self.vocabulary)

    def _token_ids(self) -> list[int] | UnsetType:
        return self._pieces.token_ids if self.extras.token_ids else UNSET

    def _usage(self) -> UsageInfo | UnsetType | None:
        """Of a chunk."""
        if self.extras.usage_so_far:
            return UsageInfo.of(self.source.usage)
        return None if self.extras.include_usage else UNSET
